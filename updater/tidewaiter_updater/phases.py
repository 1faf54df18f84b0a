"""The state machine as data: which phase a start finds itself in, and what each phase does to the device, in which order.

Pure. Two questions are answered here and nowhere else:

- `classify`: what phase is this, given the boot environment, the booted slot and a hint? The environment decides;
  the journal only says which release the slot content might be (invariant I3). First row that fits, top to bottom.
- `EFFECTS`: what does entering a phase change, in which order? A cut between two effects must leave a state that
  `classify` turns into the same phase or an earlier one, and every effect is safe to repeat. The engine executes these
  tuples literally; tests/faults cuts the power before and after every entry.

Source: update-engine.md section 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from tidewaiter_core.model import SlotName

from tidewaiter_updater.model import BootEnv


class Phase(StrEnum):
    """Where a transaction stands. Paused and degraded are flags beside it, not phases."""

    IDLE = "IDLE"
    OFFERED = "OFFERED"
    WAIT_CONSENT = "WAIT_CONSENT"
    PREPARE = "PREPARE"
    TRANSFER = "TRANSFER"
    VERIFY = "VERIFY"
    STAGED = "STAGED"
    WAIT_WINDOW = "WAIT_WINDOW"
    ARMED = "ARMED"
    TRIAL = "TRIAL"
    HEALTH = "HEALTH"
    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"


RESTING = frozenset({Phase.IDLE, Phase.COMMITTED, Phase.ROLLED_BACK, Phase.FAILED})
"""Nothing is going on; the last three show how the latest transaction ended."""
WRITING = frozenset({Phase.PREPARE, Phase.TRANSFER, Phase.VERIFY})
CANCELABLE = WRITING | {Phase.OFFERED, Phase.WAIT_CONSENT, Phase.STAGED, Phase.WAIT_WINDOW, Phase.ARMED}
"""ARMED only until the reboot flag exists."""
IN_TRIAL = frozenset({Phase.TRIAL, Phase.HEALTH})


class Effect(StrEnum):
    """One change of the device. DISARM, ARM, REFUND, FAIL, COMMIT, RAISE and CLEAR are each one boot-environment write."""

    AUDIT_INSTALLING = "audit update.installing"
    DISARM = "DISARM"
    JOURNAL = "journal"
    WRITE_SLOT = "write slot"
    READ_BACK = "read back"
    RECORD_SLOT = "record slot"
    AUDIT_STAGED = "audit update.staged"
    AUDIT_ARMED = "audit update.armed"
    ARM = "ARM"
    SEAL = "seal"
    FLUSH_AUDIT = "flush audit"
    REBOOT = "reboot flag"
    REFUND = "REFUND"
    FAIL = "FAIL"
    AUDIT_FAILED = "audit update.failed"
    COMMIT = "COMMIT"
    FLOORS = "floors"
    RAISE = "RAISE"
    RELEASE_LEASE = "release lease"
    AUDIT_COMMITTED = "audit update.committed"
    QUARANTINE = "quarantine"
    CLEAR = "CLEAR"
    AUDIT_ROLLED_BACK = "audit update.rolled_back"
    CLOSE = "close journal"


EFFECTS: Mapping[Phase, tuple[Effect, ...]] = MappingProxyType(
    {
        # The audit record is durable before the slot loses its content; DISARM precedes the first changed byte (I2).
        Phase.PREPARE: (Effect.AUDIT_INSTALLING, Effect.DISARM, Effect.JOURNAL),
        Phase.TRANSFER: (Effect.WRITE_SLOT,),
        Phase.VERIFY: (Effect.READ_BACK,),
        Phase.STAGED: (Effect.RECORD_SLOT, Effect.JOURNAL, Effect.AUDIT_STAGED),
        # Environment first, journal second: the other order gave seven times more needless returns to the old release.
        Phase.ARMED: (
            Effect.AUDIT_ARMED,
            Effect.ARM,
            Effect.JOURNAL,
            Effect.SEAL,
            Effect.FLUSH_AUDIT,
            Effect.REBOOT,
        ),
        # Only when a person switched the trial off. The journal says for which boot, and goes first: a kill between the
        # two costs the refund, the other order could give it twice.
        Phase.TRIAL: (Effect.JOURNAL, Effect.REFUND),
        # Only when the checks failed; a healthy verdict changes nothing durable but the journal.
        # The journal carries the verdict, and goes first: the old slot tells the reason from it.
        Phase.HEALTH: (Effect.JOURNAL, Effect.FAIL, Effect.AUDIT_FAILED),
        # Floors and RAISE follow COMMIT, never before: an automatic rollback must stay legal until then.
        Phase.COMMITTED: (
            Effect.COMMIT,
            Effect.FLOORS,
            Effect.RAISE,
            Effect.JOURNAL,
            Effect.RELEASE_LEASE,
            Effect.AUDIT_COMMITTED,
            Effect.CLOSE,
        ),
        # Quarantine before CLEAR: after CLEAR nothing else says that this release failed.
        Phase.ROLLED_BACK: (Effect.QUARANTINE, Effect.CLEAR, Effect.AUDIT_ROLLED_BACK, Effect.CLOSE),
        Phase.FAILED: (Effect.JOURNAL, Effect.AUDIT_FAILED, Effect.CLOSE),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What the journal remembers. Losing it costs re-hashing and re-fetching, never a wrong decision."""

    phase: Phase
    txn: str
    target: SlotName
    closed: bool = False
    """The transaction ended and its outcome is audited; the phase is only shown."""
    quarantined: bool = False
    failed: bool = False
    """Health refused the release in its trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a start of the service found."""

    phase: Phase
    pending: bool = False
    """The effects of `phase` have to be (re)done before anything else."""
    stale_trial: bool = False
    """A trial is set that never ran and must be cleared; its content is staged again."""
    degraded: str | None = None
    """Code of the defect that forbids every write, None when there is none."""


def classify(
    env: BootEnv | None, booted: SlotName | None, boot_id: str, *, hint: Hint | None, finished: bool
) -> Start:
    """The phase this system is in.

    Args:
        booted: None when command line and root device do not agree.
        hint: None when the journal is lost, foreign or names a release that is not stored.
        finished: Whether the floors already cover the running release.
    """
    if booted is None:
        return Start(phase=Phase.IDLE, degraded="boot.slot-mismatch")
    if env is None:
        return Start(phase=Phase.IDLE, degraded="boot.env-invalid")
    armed_now = env.armboot == boot_id[:8]
    if env.trial is not None and env.trial is booted and booted is not env.committed:
        return (
            Start(phase=Phase.IDLE, degraded="boot.slot-mismatch") if armed_now else Start(phase=Phase.TRIAL)
        )
    if booted is not env.committed:
        return Start(phase=Phase.IDLE, degraded="boot.slot-mismatch")
    if env.trial is env.committed:
        return Start(phase=Phase.IDLE, stale_trial=True)
    if env.trial is not None:
        return _trial_elsewhere(env, armed_now=armed_now, hint=hint)
    return _no_trial(env, booted, hint=hint, finished=finished)


def _trial_elsewhere(env: BootEnv, *, armed_now: bool, hint: Hint | None) -> Start:
    if armed_now:
        return Start(phase=Phase.ARMED)
    # FAIL may never have been written, and the counter stood still for the same reason: it was judged all the same.
    if env.left == 0 or (hint is not None and hint.failed and hint.txn == env.txn):
        return Start(phase=Phase.ROLLED_BACK, pending=True)
    # The counter could not be written or the kernel was lost: the trial never ran, nobody judged the release.
    return Start(phase=Phase.VERIFY, stale_trial=True)


def _no_trial(env: BootEnv, booted: SlotName, *, hint: Hint | None, finished: bool) -> Start:
    open_hint = hint if hint is not None and not hint.closed else None
    if open_hint and open_hint.target is booted and env.txn == open_hint.txn:
        return Start(phase=Phase.COMMITTED, pending=True)
    if open_hint and open_hint.quarantined and open_hint.target is not booted:
        return Start(phase=Phase.ROLLED_BACK, pending=True)
    if not finished:
        return Start(phase=Phase.COMMITTED, pending=True)
    if hint is not None and hint.closed:
        return Start(phase=hint.phase if hint.phase in RESTING else Phase.IDLE)
    if open_hint is None or open_hint.target is booted:
        return Start(phase=Phase.IDLE)
    return _resume(env, open_hint)


def _resume(env: BootEnv, hint: Hint) -> Start:
    if hint.phase is Phase.FAILED:
        return Start(phase=Phase.FAILED, pending=True)
    if hint.phase in (Phase.OFFERED, Phase.WAIT_CONSENT) or env.is_ok(hint.target):
        # Never disarmed, as far as the environment knows: begin before DISARM.
        return Start(phase=Phase.WAIT_CONSENT)
    if hint.phase in (Phase.PREPARE, Phase.TRANSFER):
        return Start(phase=Phase.TRANSFER)
    # Whatever the journal believes of the content is proven again by reading it.
    return Start(phase=Phase.VERIFY)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTable:
    """The machine as one value. The product has one, TABLE; the crash explorer proves that it finds the mistakes in others."""

    effects: Mapping[Phase, tuple[Effect, ...]]
    classify: Callable[..., Start]


TABLE = PhaseTable(effects=EFFECTS, classify=classify)
