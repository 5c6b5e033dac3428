"""Attention to keys that grow token by token: the key-value index, its storage and its cells; a cache for models."""
