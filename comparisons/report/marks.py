"""Documents that commands write a part of: what stands between two lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from comparisons.data.datasets import ComparisonError


def write_between(document: Path, begin: str, end: str, paragraphs: Iterable[str]) -> None:
    """Replace what stands between the lines `begin` and `end` of a document; `paragraphs` are made once it is read."""
    try:
        before, first, rest = document.read_text(encoding="utf-8").partition(begin)
        _, last, after = rest.partition(end)
        if not first or not last:
            raise ComparisonError(f"{document}: expected the lines {begin!r} and {end!r}, found none")
        text = "\n\n".join(paragraphs)
        document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise ComparisonError(f"cannot write {document}: {error.strerror}") from error
