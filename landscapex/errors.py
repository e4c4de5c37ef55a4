"""Errors and warnings of landscapex.

Every error derives from `LandscapexError` and also from the built-in error it is a kind of, so that
``except ValueError`` keeps working. `Terminated` does not: a request to stop must pass
``except Exception``. Ctrl-C raises Python's own KeyboardInterrupt, with the partial result in its
attribute ``surface``: only that very class ends a script with status 130.
"""

from __future__ import annotations

from typing import Any


class LandscapexError(Exception):
    """Base of every error that landscapex raises on purpose."""


class ArgumentError(LandscapexError, ValueError):
    """An argument has a value that cannot be used; the message says what must hold."""


class ArgumentTypeError(LandscapexError, TypeError):
    """An argument has a type that cannot be used."""


class ParameterMismatchError(LandscapexError, ValueError):
    """Parameters cannot be moved, or a given vector or mapping does not fit them."""


class DirectionError(LandscapexError, ValueError):
    """A direction is zero, not finite, or parallel to another."""


class GridError(LandscapexError, ValueError):
    """The requested grid is empty, not finite, reversed, or larger than was confirmed."""


class NonFiniteCenterError(LandscapexError, ValueError):
    """The centre holds NaN or infinite parameters or buffers."""


class EmptyDataError(LandscapexError, ValueError):
    """There is nothing to average the loss over."""


class DataError(LandscapexError, ValueError):
    """The data cannot be read twice, changed between passes, or do not fit the loss."""


class LossError(LandscapexError, TypeError):
    """The loss, or a metric, returned something that is not a loss."""


class NondeterministicLossError(LandscapexError, RuntimeError):
    """The same point gave two different losses."""


class ReentrancyError(LandscapexError, RuntimeError):
    """A loss, metric or callback asked for the landscape of the model that is being evaluated."""


class ModelChangedError(LandscapexError, RuntimeError):
    """Somebody else wrote to the model while its landscape was computed."""


class DeviceError(LandscapexError, RuntimeError):
    """Model, data and directions cannot be brought to one device."""


class CaptureError(LandscapexError, RuntimeError):
    """A model cannot be captured for the compiled engine, which was asked for.

    Attributes:
        reason: Why not.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class NonFiniteProductError(LandscapexError, ValueError):
    """A product with a curvature matrix holds NaN or infinity."""


class ResumeMismatchError(LandscapexError, ValueError):
    """What is on disk belongs to another run; the message lists the fields that differ."""


class CorruptFileError(LandscapexError, OSError):
    """A file is damaged, or is not one of ours."""


class MissingFileError(CorruptFileError, FileNotFoundError):
    """A file to be read does not exist."""


class OutputError(LandscapexError, OSError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(LandscapexError, ImportError):
    """An optional package is missing; the message holds the command that installs it."""


class LandscapexWarning(UserWarning):
    """Something a person should know, but that does not make the result wrong."""


class TimeLimitWarning(LandscapexWarning):
    """The time limit of a run was reached; finished points are kept.

    Attributes:
        surface: The partial result, also if a warnings filter makes an error of this.
    """

    def __init__(self, message: str, *, surface: Any = None) -> None:
        super().__init__(message)
        self.surface = surface


class Terminated(SystemExit):
    """SIGTERM arrived (a batch system ends the job); finished points are kept. Exit status 143.

    Attributes:
        surface: The partial result, a `Surface` whose ``evaluated`` mask has holes.
        message: What was kept and how to go on.
    """

    def __init__(self, message: str, *, surface: Any = None) -> None:
        super().__init__(143)
        self.surface = surface
        self.message = message

    def __str__(self) -> str:
        return self.message
