"""Exceptions of the package: one family, each of them a built-in error too."""


class DCIError(Exception):
    """Base of every error that the package raises on purpose."""


class InvalidValueError(DCIError, ValueError):
    """An argument of the right type has a value, shape or size that cannot be used."""


class InvalidTypeError(DCIError, TypeError):
    """An argument has a type or dtype that cannot be used."""


class NotFittedError(DCIError, ValueError, AttributeError):
    """An index was asked before ``fit``; the same bases as scikit-learn's error of this name."""


class FileFormatError(InvalidValueError):
    """A file is not what it should be: of another kind or version, truncated, or damaged."""


class StorageError(DCIError, OSError):
    """A file or directory cannot be used now: another writer has it, or an earlier write to it failed."""


class WorkersLostError(DCIError, RuntimeError):
    """Workers that held shards, or were to make them, are gone, and with them what would be needed to go on."""


class UnknownIdError(DCIError, KeyError):
    """Ids that the index does not have, or no longer."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would quote its message
