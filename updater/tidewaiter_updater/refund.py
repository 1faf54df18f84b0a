"""REFUND: a try that a person spent by switching the device off in its trial is given back.

Tries are for crashes and hangs. Counting each power cycle alike makes a healthy release roll back after three quick ones
(rauc #490, #346, #643, #683). Given back is one try per boot, at most five per trial, and only on evidence: the boot before was a
trial boot of this release, it ended neither by watchdog nor by panic, and health had not judged it. Hardware that cannot tell
gives nothing back.

Source: update-engine.md section 8.
"""

from __future__ import annotations

import logging

from tidewaiter_core.errors import StateError

from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.effects import Effects
from tidewaiter_updater.model import BootEnd
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.transaction import Transaction

logger = logging.getLogger(__name__)


class Refund:
    """Looks once per process, early in a trial boot."""

    def __init__(self, transaction: Transaction, effects: Effects) -> None:
        self._t = transaction
        self._effects = effects
        self._is_settled = False

    def settle(self) -> None:
        """Give a try back if one is due. What fails here costs the refund, nothing else."""
        if self._is_settled or self._t.phase is not Phase.TRIAL:
            return
        self._is_settled = True
        try:
            if self._is_due():
                self._t.amend(refund_boot=self._t.boot_id)
                self._effects.perform(Phase.TRIAL)
                logger.warning(
                    "trial: the boot before was ended by its power, not by a fault; its try is given back"
                )
        except (BootEnvError, StateError) as err:
            logger.warning("trial: no try is given back: %s", err)

    def _is_due(self) -> bool:
        entry, release, env = self._t.entry, self._t.release, self._t.env()
        if entry is None or release is None or env is None or decision.refund(env) == env:
            return False
        trial_boots = release.policy.tries + env.refunds - env.left
        was_trial = trial_boots > 1  # the first one follows a reboot that we asked for
        was_judged = entry.verdict is not None
        is_given = entry.refund_boot == self._t.boot_id
        if not was_trial or was_judged or is_given:
            return False
        return self._t.ports.evidence.boot_before() is BootEnd.SWITCHED_OFF
