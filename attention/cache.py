"""A key-value cache for models of transformers; the code is in `attention.decoding`."""

from .decoding.cache import CacheReport, DCICache, DCILayer, IndexReport

__all__ = ["CacheReport", "DCICache", "DCILayer", "IndexReport"]
