"""Attention to keys that grow token by token; the code is in `attention.decoding`."""

from .decoding.key_value_index import KeyValueIndex

__all__ = ["KeyValueIndex"]
