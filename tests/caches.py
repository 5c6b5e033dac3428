"""How models of transformers take a cache: under a name that depends on the version."""

from importlib.metadata import version
from typing import Any

from packaging.version import Version


def past(cache: Any) -> dict[str, Any]:
    """A cache as an argument of models and of their `generate`."""
    return {("cache" if Version(version("transformers")) >= Version("5.24") else "past_key_values"): cache}
