"""Exceptions of the package: one family, each of them one of `dci`'s errors and a built-in error too."""

import dci


class AttentionError(dci.DCIError):
    """Base of every error that the package raises on purpose."""


class InvalidValueError(AttentionError, dci.InvalidValueError):
    """An argument of the right type has a value, shape or size that cannot be used."""


class InvalidTypeError(AttentionError, dci.InvalidTypeError):
    """An argument has a type or dtype that cannot be used."""


class UnsupportedError(InvalidValueError):
    """PyTorch could do what was asked, this package cannot: gradients, dropout, devices other than the CPU."""
