"""Stays with an update and shows the updater's status until the update is where the person wants it, or needs something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from tidewaiter_core.varlink import NotReachable

from tidewaiter_agent.cli_context import Context, Exit
from tidewaiter_agent.cli_progress import ProgressPrinter
from tidewaiter_agent.cli_show import end_text, wait_text
from tidewaiter_agent.update_rules import RESTING

POLL_S = 0.5
LOST_LIMIT_S = 30.0
GIVE_AGAIN_S = 1.0
GIVE_AGAIN_MOST_S = 30.0


class Goal(StrEnum):
    """Where a person wants the update to be."""

    STAGED = "staged"
    RESTARTED = "restarted"


class Follower:
    """Follows one release. The updater does the work; here it is only looked at, started into, and given its medium again."""

    def __init__(
        self,
        context: Context,
        release: Mapping[str, Any],
        *,
        goal: Goal,
        as_json: bool = False,
        medium: Callable[[str], bool] | None = None,
    ) -> None:
        """
        Args:
            medium: Hands the medium over again, after it was gone; False while it is not there.
        """
        self._context = context
        self._release = release
        self._goal = goal
        self._as_json = as_json
        self._medium = medium
        self._printer = ProgressPrinter(context.out)
        self._clock = context.clock
        self._is_going_down = False
        self._asked_to_start = False
        self._give_at_s = float("-inf")
        self._give_gap_s = GIVE_AGAIN_S
        self._explained = ""
        """Code of the trouble that was explained already."""

    def run(self) -> int:
        """The exit code."""
        shown: Mapping[str, Any] = {}
        try:
            while True:
                status = self._look()
                if status is None:
                    return self._say(Exit.OK, "the device restarts into the new release")
                if status != shown:
                    self._show(status)
                shown = status
                code = self._judge(status)
                if code is not None:
                    return code
                self._clock.sleep(POLL_S)
        except KeyboardInterrupt:
            return self._say(
                Exit.UNFINISHED,
                f"left in phase {shown.get('phase', '?')}; the updater goes on with what it has. "
                "`tidewaiter update status --watch` shows it, the same command goes on with it, "
                "`tidewaiter update cancel` ends it",
            )
        finally:
            self._printer.end()

    def _look(self) -> dict[str, Any] | None:
        """The status, None when the device goes down as it was asked to."""
        began_s = self._clock.boottime_s()
        while True:
            try:
                status: dict[str, Any] = self._context.updater("GetStatus")["status"]
            except NotReachable:
                if self._is_going_down:
                    return None
                if self._clock.boottime_s() - began_s > LOST_LIMIT_S:
                    raise
                self._clock.sleep(POLL_S)  # it was restarted; what it has to do stands in its journal
            else:
                return status

    def _judge(self, status: Mapping[str, Any]) -> int | None:
        phase = status["phase"]
        if phase in RESTING or status["digest"] != self._release["digest"]:
            # Nothing of it is in hand any more: how it ended stands in `last`.
            return self._say(Exit.WRONG, end_text(status))
        if phase in ("STAGED", "WAIT_WINDOW"):
            if self._goal is Goal.STAGED:
                return self._say(Exit.OK, end_text(status))
            if not self._asked_to_start:
                self._context.updater("Activate", {"digest": self._release["digest"], "window_open": True})
                self._asked_to_start = True
        if phase in ("TRIAL", "HEALTH"):
            return self._say(Exit.OK, "the new release runs on trial")
        self._is_going_down = phase == "ARMED"
        if "source.vanished" in status["waiting_for"]:
            self._give_again()
        return None

    def _give_again(self) -> None:
        now_s = self._clock.boottime_s()
        if self._medium is None or now_s < self._give_at_s:
            return
        # A stick that is back cannot be told from one that never left, so it is tried; a broken one not all the time.
        self._give_gap_s = min(2 * self._give_gap_s, GIVE_AGAIN_MOST_S)
        self._give_at_s = now_s + self._give_gap_s
        self._medium(self._release["digest"])

    def _show(self, status: Mapping[str, Any]) -> None:
        if self._as_json:
            self._context.say_json(status)
            return
        self._printer.show(status)
        last = status["last"]
        if last and last["code"] in status["waiting_for"] and last["code"] != self._explained:
            self._explained = last["code"]
            self._printer.end()
            self._context.say(wait_text(last))

    def _say(self, code: Exit, text: str) -> Exit:
        self._printer.end()
        if not self._as_json:
            self._context.say(text)
        return code
