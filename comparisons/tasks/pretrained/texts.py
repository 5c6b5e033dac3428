"""Real text in English: Python's documentation, by topic, and the docstrings of the standard library."""

from __future__ import annotations

from attention.demo import long_text
from attention.demo_language_model import documentation

TEXTS = {"documentation": documentation, "docstrings": long_text}
