"""What a device sends to the server: feedback, configData and confirmation documents. Pure.

The table from update phase to execution is data, so that the agent, the tests and the server agree on one copy.
Source: agent-and-remote-sessions.md section 5. hawkBit facts behind it: `rejected` on a deployment leaves the action open, so a
refusal is closed/failure; `canceled` on a cancel is only a warning, so a cancel is acknowledged with closed/success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CONFIG_KEYS_LIMIT = 64
CONFIG_TEXT_LIMIT = 128
DETAILS_LIMIT = 20
DETAIL_LIMIT = 512
_INT32_MAX = 2**31 - 1


class Execution(StrEnum):
    """`status.execution`"""

    CLOSED = "closed"
    PROCEEDING = "proceeding"
    CANCELED = "canceled"
    SCHEDULED = "scheduled"
    REJECTED = "rejected"
    RESUMED = "resumed"
    DOWNLOADED = "downloaded"
    DOWNLOAD = "download"


class Finished(StrEnum):
    """`status.result.finished`"""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Standing:
    """How an action stands in the server's words."""

    execution: Execution
    finished: Finished


_OPEN = Finished.NONE
STANDING_OF_PHASE: Mapping[str, Standing] = {
    "OFFERED": Standing(Execution.PROCEEDING, _OPEN),
    "WAIT_CONSENT": Standing(Execution.SCHEDULED, _OPEN),
    "WAIT_WINDOW": Standing(Execution.SCHEDULED, _OPEN),
    "PREPARE": Standing(Execution.PROCEEDING, _OPEN),
    "TRANSFER": Standing(Execution.DOWNLOAD, _OPEN),
    "VERIFY": Standing(Execution.DOWNLOAD, _OPEN),
    "STAGED": Standing(Execution.DOWNLOADED, _OPEN),
    "ARMED": Standing(Execution.PROCEEDING, _OPEN),
    "TRIAL": Standing(Execution.RESUMED, _OPEN),
    "HEALTH": Standing(Execution.RESUMED, _OPEN),
    "COMMITTED": Standing(Execution.CLOSED, Finished.SUCCESS),
    "REFUSED": Standing(Execution.CLOSED, Finished.FAILURE),
    "FAILED": Standing(Execution.CLOSED, Finished.FAILURE),
    "ROLLED_BACK": Standing(Execution.CLOSED, Finished.FAILURE),
}
"""Phases of the updater by name; REFUSED stands for an offer that never became a transaction. VERIFY is still `download`:
`downloaded` is said once it is done, with STAGED."""

CANCEL_DONE = Standing(Execution.CLOSED, Finished.SUCCESS)
CANCEL_TOO_LATE = Standing(Execution.REJECTED, Finished.NONE)


def feedback(
    standing: Standing,
    *,
    details: Sequence[str] = (),
    code: int | None = None,
    progress: tuple[int, int] | None = None,
    timestamp_ms: int | None = None,
) -> dict[str, Any]:
    """A feedback document for a deployment or a cancel.

    Args:
        details: For a failure the first one is the stable error code.
        progress: (done, of); scaled down together if they do not fit the protocol's 32 bit.
    """
    result: dict[str, Any] = {"finished": standing.finished.value}
    if progress is not None:
        done, of = progress
        while max(done, of) > _INT32_MAX:
            done, of = done // 1024, of // 1024
        result["progress"] = {"cnt": max(0, done), "of": max(0, of)}
    status: dict[str, Any] = {
        "execution": standing.execution.value,
        "result": result,
        "details": _details(details),
    }
    if code is not None:
        status["code"] = code
    document: dict[str, Any] = {"status": status}
    if timestamp_ms is not None:
        document["timestamp"] = timestamp_ms
    return document


def phase_feedback(
    phase: str,
    *,
    details: Sequence[str] = (),
    progress: tuple[int, int] | None = None,
    timestamp_ms: int | None = None,
) -> dict[str, Any]:
    """Feedback for an update phase by its name; ValueError for a phase that the table does not have."""
    standing = STANDING_OF_PHASE.get(phase)
    if standing is None:
        raise ValueError(f"update phase {phase!r} has no place in the feedback table")
    return feedback(standing, details=details, progress=progress, timestamp_ms=timestamp_ms)


def config_data(data: Mapping[str, str], *, mode: str = "merge") -> dict[str, Any]:
    """The configData document; long values are cut. ValueError for too many keys or what is not a text."""
    if mode not in ("merge", "replace", "remove"):
        raise ValueError(f"configData mode {mode!r} is not merge, replace or remove")
    if len(data) > CONFIG_KEYS_LIMIT:
        raise ValueError(f"configData: {len(data)} keys, at most {CONFIG_KEYS_LIMIT} are allowed")
    for key, value in data.items():
        if not isinstance(value, str) or not 0 < len(key) <= CONFIG_TEXT_LIMIT:
            raise ValueError(
                f"configData {key[:64]!r}: expected a text under a name of 1 to {CONFIG_TEXT_LIMIT} characters"
            )
    return {"mode": mode, "data": {key: _cut(value, CONFIG_TEXT_LIMIT) for key, value in data.items()}}


def confirmation(*, confirmed: bool, details: Sequence[str] = (), code: int | None = None) -> dict[str, Any]:
    """The answer to a confirmationBase action."""
    document: dict[str, Any] = {
        "confirmation": "confirmed" if confirmed else "denied",
        "details": _details(details),
    }
    if code is not None:
        document["code"] = code
    return document


def format_sleep(seconds: int) -> str:
    """`HH:MM:SS`; at most 23:59:59, because clients in the field read it with %H:%M:%S."""
    if seconds < 0:
        raise ValueError(f"a sleep of {seconds} s")
    minutes, second = divmod(min(seconds, 86_399), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}"


def _details(details: Sequence[str]) -> list[str]:
    """The first is the code and the last the news: if there are too many, the middle goes."""
    shown = list(details)
    if len(shown) > DETAILS_LIMIT:
        shown = [shown[0], f"… {len(shown) - DETAILS_LIMIT + 1} more", *shown[-(DETAILS_LIMIT - 2) :]]
    return [_cut(text, DETAIL_LIMIT) for text in shown]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
