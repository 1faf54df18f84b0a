"""The one root of every error tidewaiter raises on purpose.

A component has its own family below `TidewaiterError`; a subclass exists only where a caller reacts differently.
A message names object, expectation, finding and consequence, with units, and never a secret.
Every `code` is listed in docs/errors.md.
"""

from __future__ import annotations

from typing import ClassVar


class TidewaiterError(Exception):
    """Root of all errors; `code` is stable and may be searched for, `retryable` says whether trying again can help."""

    code: ClassVar[str] = "core.error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        # One instance may be more precise than its class; subclasses still declare plain class attributes.
        if code is not None:
            self.__dict__["code"] = code
        if retryable is not None:
            self.__dict__["retryable"] = retryable


class ConfigError(TidewaiterError):
    """The configuration is wrong; the process refuses to start (exit 78)."""

    code = "core.config"


class StateError(TidewaiterError):
    """A state file is unreadable or was written by a newer program; it is left as found."""

    code = "core.state"


class StateWriteError(StateError):
    """The medium refused a write, a sync or a rename; the message says what the file holds now."""

    code = "core.state-write"
    retryable = True


class SecondInstanceError(TidewaiterError):
    """Another process holds the lock of this component (exit 75)."""

    code = "core.second-instance"


class DeadlineError(TidewaiterError):
    """Something did not finish in the time it was given."""

    code = "core.deadline"
    retryable = True
