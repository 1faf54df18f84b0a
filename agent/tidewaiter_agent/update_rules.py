"""DDI on one side, the updater's phases on the other: what a status means for an action, and what is reported of it. Pure.

Source: the phase table of agent-and-remote-sessions.md section 5. hawkBit facts it respects: `rejected` on a deployment is only a
warning and leaves the action open, so a refusal is closed/failure; feedback entries are limited by quota, so progress is
coalesced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tidewaiter_core.ddi import STANDING_OF_PHASE, Execution, Finished, Standing

from tidewaiter_agent.updater_client import UpdaterStatus

RESTING = frozenset({"IDLE", "COMMITTED", "ROLLED_BACK", "FAILED"})
OPEN = Standing(Execution.PROCEEDING, Finished.NONE)
PROGRESS_STEP_PERCENT = 10
PROGRESS_GAP_S = 60.0
SUCCESS_CODES = frozenset({"", "update.committed", "update.staged"})
CANCELED_CODES = frozenset({"update.canceled", "update.rejected"})

_SENTENCES = {
    "VERIFY": "read back from slot {target}",
    "STAGED": "staged in slot {target}",
    "ARMED": "armed: the next start is slot {target}",
    "TRIAL": "slot {booted} runs on trial",
    "HEALTH": "slot {booted} runs on trial",
}


class Meaning(StrEnum):
    """What the updater's status means for our action."""

    INSTALL = "install"
    """Nothing of ours is in hand: ask the updater to begin."""
    FOLLOW = "follow"
    """It is working or waiting; report and look again."""
    CONSENT = "consent"
    """It waits for somebody's permission."""
    ACTIVATE = "activate"
    """Staged: allow the reboot as far as the server's window goes."""
    BUSY = "busy"
    """Another release is in hand."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One feedback message, before it becomes a DDI body."""

    standing: Standing
    details: tuple[str, ...]
    percent: int | None = None

    @property
    def key(self) -> str:
        """Equal keys say the same thing; progress counts in steps of ten percent."""
        step = "" if self.percent is None else str(self.percent // PROGRESS_STEP_PERCENT)
        told = "" if self.percent is not None else "|".join(self.details)
        return f"{self.standing.execution}/{self.standing.finished}/{step}/{told}"[:600]


def judge(status: UpdaterStatus, digest: str, *, begun: bool) -> Meaning:
    """What `status` means for the release `digest`.

    Args:
        begun: Install was accepted for this action. Before that an ending belongs to an earlier action of the same release.
    """
    if not begun:
        if status.phase in RESTING:
            return Meaning.SUCCEEDED if status.running_digest == digest else Meaning.INSTALL
        return Meaning.INSTALL if status.digest == digest else Meaning.BUSY
    if status.phase in RESTING:
        return _judge_ending(status, digest)
    if status.digest != digest:
        return Meaning.BUSY
    if "update.consent" in status.waiting_for and status.phase in ("WAIT_CONSENT", "WAIT_WINDOW"):
        return Meaning.CONSENT
    return Meaning.ACTIVATE if status.phase in ("STAGED", "WAIT_WINDOW") else Meaning.FOLLOW


def _judge_ending(status: UpdaterStatus, digest: str) -> Meaning:
    told_of_us = digest in (status.last_digest, status.digest)
    if told_of_us and status.last_code not in SUCCESS_CODES:
        return Meaning.FAILED
    if status.phase in ("FAILED", "ROLLED_BACK") and told_of_us:
        return Meaning.FAILED
    if status.running_digest == digest:
        return Meaning.SUCCEEDED
    if status.phase == "COMMITTED" and told_of_us:
        return Meaning.SUCCEEDED
    # A journal that was lost in a power cut: the release is simply not there yet.
    return Meaning.INSTALL


def report_of(status: UpdaterStatus) -> Report:
    """What to tell the server while the action is open."""
    waiting = tuple(f"waiting for {name}" for name in status.waiting_for)
    standing = STANDING_OF_PHASE.get(status.phase, OPEN)
    if status.phase == "TRANSFER" and not waiting and not status.paused:
        details = (progress_text(status), origin_text(status.by_source))
        return Report(
            standing=standing, details=tuple(text for text in details if text), percent=percent_of(status)
        )
    if waiting or status.paused:
        return _report(standing, *(waiting or ("paused",)), status.last_text, _advice(status.last_what_to_do))
    return _report(
        standing,
        _SENTENCES.get(status.phase, "{phase}").format(
            phase=status.phase.lower(), target=status.target, booted=status.booted
        ),
    )


def success_report(status: UpdaterStatus) -> Report:
    """The action is done."""
    text = f"release {status.running_version} runs from slot {status.booted}"
    return _report(STANDING_OF_PHASE["COMMITTED"], "update.committed", text)


def failure_report(code: str, text: str, what_to_do: str = "") -> Report:
    """The action has failed or was refused; details[0] is the stable code."""
    return _report(STANDING_OF_PHASE["FAILED"], code or "update.failed", text, _advice(what_to_do))


def verified_report(name: str) -> Report:
    """The updater has verified the release."""
    return _report(STANDING_OF_PHASE["OFFERED"], f"release {name} is verified")


def waiting_report(code: str, text: str) -> Report:
    """It will be tried again."""
    return _report(STANDING_OF_PHASE["WAIT_WINDOW"], code, text)


def is_due(report: Report, *, last_key: str, last_s: float | None, now_s: float) -> bool:
    """Whether to send `report`: at once when it says something new, progress at most every 10 percent or 60 s."""
    if report.key != last_key:
        return True
    return report.percent is not None and (last_s is None or now_s - last_s >= PROGRESS_GAP_S)


def percent_of(status: UpdaterStatus) -> int:
    """Share of the image that is in place, 0 to 100."""
    return 0 if status.total_bytes <= 0 else min(100, 100 * status.done_bytes // status.total_bytes)


def progress_text(status: UpdaterStatus) -> str:
    """One line for people."""
    mib = 1024 * 1024
    way = "over the network" if status.source in ("", "relay") else "from a medium"
    fetched = (
        f", {status.fetched_bytes / mib:.1f} of {status.expected_fetch_bytes / mib:.1f} MiB fetched {way}"
    )
    speed = f", {status.speed_bytes_per_s / mib:.1f} MiB/s" if status.speed_bytes_per_s else ""
    left = f", {status.remaining_s} s left" if status.remaining_s is not None else ""
    return (
        f"{status.done_bytes / mib:.1f} of {status.total_bytes / mib:.1f} MiB in place{fetched}{speed}{left}"
    )


def origin_text(by_source: Mapping[str, int]) -> str:
    """Where the bytes in place came from, for people; empty while there are none."""
    shown = (f"{name} {count / (1024 * 1024):.1f}" for name, count in by_source.items() if count)
    listed = ", ".join(shown)
    return f"MiB by origin: {listed}" if listed else ""


def _advice(what_to_do: str) -> str:
    return f"what to do: {what_to_do}" if what_to_do else ""


def _report(standing: Standing, *details: str) -> Report:
    return Report(standing=standing, details=tuple(text for text in details if text))
