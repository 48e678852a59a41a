"""The package's own error types: every message says what was got, what is wanted and what to do."""

from fastdetect.reasons import Reason


class FastdetectError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(FastdetectError, ValueError):
    """A command line, option or configuration value cannot be used (exit code 2)."""


class ShapeError(FastdetectError, ValueError):
    """A tensor or array has the wrong shape, dtype, device or value range."""


class MissingDependencyError(FastdetectError, ImportError):
    """An optional package is needed; the message names the extra that installs it (exit code 2)."""


class CheckpointError(FastdetectError):
    """A model folder is missing, incomplete, of another format, or fails its hash."""


class NoSuchModelError(CheckpointError, UsageError):
    """A name or folder that was given is no model's (exit code 2)."""


class EngineError(FastdetectError):
    """An inference engine cannot be exported, built, kept or run on this machine."""


class DataError(FastdetectError):
    """A data set, manifest or sample cannot be read as it is; the message names the path."""


class OutputError(FastdetectError):
    """A result cannot be written; the message names the path, the cause and what to do."""


class MediaError(FastdetectError):
    """A media file cannot be screened.

    Args:
        reason: the stable code that goes into the result row.
        message: what was got, for a person.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Reason, str]]:
        return type(self), (self.reason, str(self))
