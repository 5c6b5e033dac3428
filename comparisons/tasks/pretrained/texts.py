"""Real text in English: Python's documentation, by topic, and the docstrings of the standard library."""

from __future__ import annotations

from pydoc_data import topics

from attention.demo import long_text


def documentation() -> str:
    """Return what ``help("topics")`` knows, topic by topic: some 700,000 characters."""
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


TEXTS = {"documentation": documentation, "docstrings": long_text}
