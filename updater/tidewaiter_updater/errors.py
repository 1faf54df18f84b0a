"""Errors of the update engine, one family per place where they arise.

A caller reacts to `code` and `retryable`; a class of its own exists only where a caller reacts differently.
Source: update-engine.md section 16.
"""

from __future__ import annotations

from tidewaiter_core.errors import TidewaiterError


class TrustError(TidewaiterError):
    """The repository, not the way to it, is at fault: nothing of it is used, the fault is audited, the next poll tries again.

    Codes: trust.repository, trust.threshold, trust.expired, trust.rollback, trust.hash-policy, trust.target,
    trust.floor-lost, trust.storage (our own disk), trust.child (the verifying process died).
    """

    code = "trust.repository"
    retryable = True


class SourceError(TidewaiterError):
    """Bytes did not arrive as they should; another attempt or another source may help.

    Codes: source.unavailable, source.slow, source.vanished, source.not-metadata, source.bad-range, source.bad-bytes,
    source.path.
    """

    code = "source.unavailable"
    retryable = True


class SourceRefusedError(SourceError):
    """The server answered 403 or 404: final for this attempt, asking again at once would loop for ever."""

    code = "source.unavailable"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
        """404 or 403, which TUF reads as "there is no newer root"."""


class SlotError(TidewaiterError):
    """A slot device is not what it must be, or refused a read, a write or a sync.

    Codes: slot.size, slot.busy, slot.read-only, slot.booted, slot.label (refused before anything is written),
    slot.io (retryable), slot.medium (the medium does not keep what it is given).
    """

    code = "slot.io"


class BudgetError(TidewaiterError):
    """More bytes would be fetched than release and site allow; nothing is fetched before a person or server decides."""

    code = "update.budget"


class RouteClosedError(TidewaiterError):
    """Chunks cannot go on coming the way that was planned (slot.active-differs, source.*); another way needs a plan of its own.

    Raised before anything that was not planned is fetched. Not seen outside `slot_store`, which makes that plan or pauses.
    """

    code = "slot.active-differs"


class InstallCancelledError(TidewaiterError):
    """The engine asked to stop; the slot stays unbootable and what was written is reused by the next attempt."""

    code = "update.canceled"


class OfferRefusedError(TidewaiterError):
    """The release is genuine, but this device does not install it now.

    Codes: release.hw, release.from, release.sequence, release.epoch, release.data-schema, release.quarantined,
    release.rollout, release.permit, release.unknown (no verified document is stored), release.uki, release.version
    (systemd-boot would not start it), update.disabled, update.no-space.
    """

    code = "release.hw"


class InterlockError(TidewaiterError):
    """The injector may be in use, or its lock ended: nothing is armed and nothing restarts.

    Code: update.interlock; `reasons` are the interlock's.
    """

    code = "update.interlock"
    retryable = True

    def __init__(self, message: str, *, reasons: tuple[str, ...]) -> None:
        super().__init__(message)
        self.reasons = reasons


class EngineBusyError(TidewaiterError):
    """Another release is in hand, or the phase allows no such command; code update.busy."""

    code = "update.busy"
    retryable = True

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class EngineRefusedError(TidewaiterError):
    """A command that does not fit the state; codes boot.*, health.*, update.consent, update.degraded."""

    code = "update.refused"


class DataStepError(TidewaiterError):
    """The data set of the running release could not be made; the set it would come from is as it was.

    Codes: data.io, data.no-space, data.deadline, data.program (a migration program is missing or failed), data.special (a file
    of a kind that is not copied), data.limit, data.missing, data.live-lost, data.old-set-changed, release.data-schema.
    """

    code = "data.io"
