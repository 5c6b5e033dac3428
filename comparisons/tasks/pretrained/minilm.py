"""all-MiniLM-L6-v2 embeds long documents whole: which of them a query belongs to, with exact attention and others'.

The encoder (6 layers, 12 heads of 32) knows 512 positions and was trained on 128 to 256 tokens. Beyond that, its table
of positions is stretched: interpolated linearly between the entries (Chen et al. 2023), so that a document of any
length has positions 0 to 511 in finer steps. No weight is trained for that; exact attention has the same positions.

Documents are modules of Python's standard library, as source code without their docstring; a query is the first
paragraph of a module's docstring, embedded as it is. A document's embedding is the mean of its tokens, as ever.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention import demo
from comparisons.attention.bench import Contender
from comparisons.data.datasets import MissingPackageError
from comparisons.harness.results import Row
from comparisons.tasks import rows
from comparisons.tasks.pretrained.answers import Answers

POSITIONS = 512
LEAST_QUERY = 20  # characters
PACKAGES = ("", "asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest", "xml/dom")


def load() -> tuple[Any, Any]:
    """Return the tokenizer and the encoder, or say in one line what to install."""
    try:
        return demo._load()
    except demo.DemoError as error:
        raise MissingPackageError(f"MiniLM: {error}") from error


def modules() -> Iterator[tuple[str, str]]:
    """Yield queries and documents: the beginning of a module's docstring, and its source without that."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(path for package in PACKAGES for path in (root / package).glob("*.py")):
        try:
            source = path.read_text("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        docstring = ast.get_docstring(tree)
        if not docstring or len(query := docstring.split("\n\n")[0]) < LEAST_QUERY:
            continue
        after = tree.body[0].end_lineno or 0
        yield query, "\n".join(source.splitlines()[after:])


class Retrieval:
    """Documents of one length, found by their queries.

    Parameters
    ----------
    length : int
        Tokens of each document: those of modules with as many, the first ones.
    count : int
        At most so many documents.
    threads : int
    """

    def __init__(self, length: int, count: int, threads: int) -> None:
        self.answers = Answers(self._documents, threads)
        self.tokenizer, self.encoder = load()
        self.table = self.encoder.embeddings.position_embeddings.weight.detach()
        self.queries: list[Tensor] = []
        self.documents: list[Tensor] = []
        for query, document in modules():
            found = self._tokens(document)
            if found.shape[1] >= length and len(self.queries) < count:
                self.queries.append(self._tokens(query)[:, :POSITIONS])
                self.documents.append(torch.cat([found[:, : length - 1], found[:, -1:]], 1))

    def row(self, contender: Contender) -> Row:
        """Return the row of a contender.

        The accuracy is the mean reciprocal rank of a query's own document; ``first`` is the share of the queries whose
        own document comes first, ``agreement`` that of those with the same first document as with exact attention, and
        ``cosine`` the least cosine of a document's embedding and its exact one.
        """
        found, row = self.answers.of(contender)
        exactly = self.answers.exact
        (rank, first), (exact, exact_first) = (self._ranks(embedded) for embedded in (found, exactly))
        same = (self._best(found) == self._best(exactly)).float().mean().item()
        row |= {"causal": False, "sequences": len(found), "agreement": same, "first": first, "exact_first": exact_first}
        row["cosine"] = (found * exactly).sum(1).min().item()
        return row | rows.accuracy("mean reciprocal rank", rank, exact, len(found))

    @cached_property
    def _asked(self) -> Tensor:
        return torch.cat([self._embed(query) for query in self.queries])

    def _documents(self) -> Tensor:
        return torch.cat([self._embed(document) for document in self.documents])

    def _tokens(self, text: str) -> Tensor:
        return self.tokenizer(text, truncation=False, verbose=False, return_tensors="pt")["input_ids"]

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return the normed mean of a text's hidden states, (1, width)."""
        embeddings, length = self.encoder.embeddings, tokens.shape[1]
        before = embeddings.position_embeddings
        if length > POSITIONS:
            embeddings.position_embeddings = nn.Embedding.from_pretrained(stretched(self.table, length))
        try:
            places, kinds = torch.arange(length)[None], torch.zeros_like(tokens)
            hidden = self.encoder(tokens, position_ids=places, token_type_ids=kinds).last_hidden_state
        finally:
            embeddings.position_embeddings = before
        return functional.normalize(hidden.mean(1), dim=1)

    def _ranks(self, documents: Tensor) -> tuple[float, float]:
        """Return the mean reciprocal rank of the queries' own documents, and the share that comes first."""
        scores = self._asked @ documents.T
        ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)
        return (1 / ranks).mean().item(), (ranks == 1).float().mean().item()

    def _best(self, documents: Tensor) -> Tensor:
        return (self._asked @ documents.T).argmax(1)


def stretched(table: Tensor, length: int) -> Tensor:
    """Return a table of positions (n, width) interpolated to `length` rows, the ends in place."""
    return functional.interpolate(table.T[None], size=length, mode="linear", align_corners=True)[0].T.contiguous()
