"""A device whose boot environment is lost: rebuilt from what the booted slot provably holds, else only by an operator.

REPAIR makes the booted slot the committed one and forbids the other. That is right only if the booted slot is what was installed,
so it is hashed against its recorded table first; without a record nobody but a person can say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidewaiter_core.audit import AuditUnavailableError, Outcome

from tidewaiter_updater import decision
from tidewaiter_updater.errors import EngineRefusedError, InstallCancelledError, SlotError
from tidewaiter_updater.ports import Control
from tidewaiter_updater.transaction import SYSTEM, Transaction

logger = logging.getLogger(__name__)

DEGRADED_WAIT_S = 60.0


class Repair:
    """The way out of DEGRADED boot.env-invalid; the other verdicts have none but a restart."""

    def __init__(self, transaction: Transaction, *, control: Control) -> None:
        self._t = transaction
        self._control = control
        self._tried = False

    def attempt(self, then: Callable[[], None]) -> float:
        """Repair once per process if the booted slot proves itself, then call `then` to classify again."""
        if self._t.degraded != "boot.env-invalid" or self._tried or self._t.booted is None:
            return DEGRADED_WAIT_S
        self._tried = True
        record = self._t.journal.slots().get(self._t.booted)
        if record is None or record.sequence != self._t.identity.sequence:
            logger.error("boot environment: invalid, and no record says what slot %s holds", self._t.booted)
            return DEGRADED_WAIT_S
        release = self._t.load_release(record.digest)
        try:
            is_right = release is not None and self._t.ports.slots.holds(
                self._t.booted, release, control=self._control
            )
        except InstallCancelledError:
            self._tried = False
            logger.info("boot environment: repair interrupted, nothing was decided")
            return DEGRADED_WAIT_S
        except SlotError as err:
            logger.error("boot environment: invalid, and slot %s cannot be proven: %s", self._t.booted, err)  # noqa: TRY400
            return DEGRADED_WAIT_S
        if not is_right:
            logger.error("boot environment: invalid, and slot %s differs from its record", self._t.booted)
            return DEGRADED_WAIT_S
        self._write(f"slot {self._t.booted} matches {record.version}")
        then()
        return 0.0

    def by_operator(self) -> None:
        """Repair without proof; a person looked at the device."""
        if self._t.degraded != "boot.env-invalid" or self._t.booted is None:
            raise EngineRefusedError(
                "boot environment: it is valid, there is nothing to repair", code="boot.env-invalid"
            )
        self._write("an operator asked for it")

    def _write(self, why: str) -> None:
        booted = self._t.booted
        if booted is None:
            raise RuntimeError("REPAIR without a booted slot")
        epoch = max(self._t.ports.floors.effective().security_epoch, self._t.identity.security_epoch)
        self._t.ports.boot.write(decision.repair(booted, epoch=epoch))
        logger.warning("boot environment: rebuilt for slot %s (%s)", booted, why)
        self._t.conclude("update.repaired", f"boot environment rebuilt for slot {booted}: {why}")
        try:
            self._t.ports.audit.append(
                "update.failed",
                actor=SYSTEM,
                outcome=Outcome.SERIOUS,
                fields={"release": self._t.identity.version, "digest": "", "code": "boot.env-invalid"},
            )
        except AuditUnavailableError:
            logger.exception("the repair is not in the audit log")
