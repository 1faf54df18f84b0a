"""The end of a trial whose decision the boot environment did not take: tried again while the device runs.

Waiting for the next start would be worse than it sounds: the start spends a try, and a healthy release is abandoned in the end
although nothing is wrong with it. Until the write succeeds nothing else is decided, and the injector stays locked.
"""

from __future__ import annotations

import logging
import random
from typing import Final

from tidewaiter_core.backoff import Backoff

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.transaction import Transaction

logger = logging.getLogger(__name__)

RETRY_BASE_S: Final = 5.0
RETRY_CAP_S: Final = 600.0
VERDICT_WAITS: Final = 5
"""So often the device waits and tries FAIL again; then it restarts without, and the tries that are left go back by themselves."""


class Unwritten:
    """Counts and times the tries of the one ending that is pending."""

    def __init__(self, transaction: Transaction, *, rng: random.Random | None) -> None:
        self._t = transaction
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, rng=rng)
        self._again_s: float | None = None

    def left_s(self) -> float:
        """Seconds until the next try; 0 when it is due."""
        return max(0.0, self._again_s - self._now_s()) if self._again_s is not None else 0.0

    def after(self, err: BootEnvError) -> float:
        """A try failed; returns the seconds until the next one. Anything but a refused write is raised again."""
        if err.code != "boot.env-write" or self._t.phase is Phase.ROLLED_BACK:
            raise err
        if self._t.phase is Phase.HEALTH and self._backoff.failures >= VERDICT_WAITS:
            logger.error(
                "%s: %s; the device restarts without it and goes back when the tries are spent", err.code, err
            )
            self.over()
            self._t.pending = False
            return 0.0
        wait_s = self._backoff.next_s(at_least_s=1.0)
        self._again_s = self._now_s() + wait_s
        if (
            self._t.phase is not Phase.HEALTH
        ):  # the reason stays what health said: it is what the earlier release reports
            self._t.conclude(err.code, str(err))
        self._t.wait_for(err.code)
        logger.error("%s: %s; tried again in %.0f s", err.code, err, wait_s)
        return wait_s

    def over(self) -> None:
        """The ending is written, or given up."""
        if self._again_s is not None:
            self._again_s = None
            self._backoff.reset()
            self._t.wait_for()

    def _now_s(self) -> float:
        return self._t.ports.clock.boottime_s()
