"""The updater's values: what the boot environment says, what a slot holds, what was offered, what the user is shown.

Frozen, without input or output. Release documents themselves are `tidewaiter_core.payload.release.Release`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.policy import Data

TXN_CHARS = 16
"""A transaction is named by the first 8 bytes of the release digest, in hex: that is what fits the boot environment."""
NO_TXN = "0" * TXN_CHARS
NO_BOOT = "0" * 8

RELAY = "relay"
"""The source name of the network. That of a medium is `DIRECTORY_PREFIX` and where its operator says that it is."""
DIRECTORY_PREFIX = "directory:"
SOURCE_CHARS = 256


def source_name(place: str) -> str:
    """The source name of a medium that its operator calls `place`."""
    return f"{DIRECTORY_PREFIX}{place}"[:SOURCE_CHARS]


def is_medium(source: str) -> bool:
    """Whether a source name means a medium. The name is for people, the journal and the audit log; nothing is opened by it."""
    return source.startswith(DIRECTORY_PREFIX) and len(source) <= SOURCE_CHARS and source.isprintable()


def txn_of(digest: Sha256) -> str:
    """The name of `digest` in the boot environment and in the quarantine."""
    return digest[:TXN_CHARS]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEnv:
    """Everything the boot script decides by. Changed only as a whole (update-engine.md section 8)."""

    committed: SlotName
    ok_a: bool
    ok_b: bool
    """Whether the slot may be booted as a fallback."""
    trial: SlotName | None = None
    left: int = 0
    """Trial boots that are still allowed, 0..9."""
    refunds: int = 0
    txn: str = NO_TXN
    armboot: str = NO_BOOT
    """First 8 hex digits of the boot id that armed the trial."""
    epoch: int = 0

    def is_ok(self, slot: SlotName) -> bool:
        """Whether `slot` may be booted as a fallback."""
        return self.ok_a if slot is SlotName.A else self.ok_b


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """What was last verified to be in a slot. A hint: every use of it is preceded by hashing the slot."""

    digest: Sha256
    root: Sha256
    """SHA-256 over the chunk hashes of the image."""
    sequence: int
    epoch: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRelease:
    """The release this system was booted from, by the identity file inside its own read-only root."""

    product: str
    version: str
    sequence: int
    security_epoch: int
    built_utc: str
    hw: tuple[str, ...]
    data: Data | None = None
    """The schema of the data sets that it writes and reads; None for an image that keeps none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorValues:
    """Nothing below these is installed (update-engine.md section 5.4)."""

    sequence: int = 0
    security_epoch: int = 0
    time_utc: str = ""


class Channel(StrEnum):
    """Where a consent came from."""

    LOCAL = "local"
    SITE = "site"
    NONE = "none"


class Scope(StrEnum):
    """What a consent covers."""

    INSTALL = "install"
    ACTIVATE = "activate"
    IRREVERSIBLE = "irreversible"
    """That the earlier release cannot come back, because it cannot read the data any more; only with a local consent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """A person's permission, bound to exactly one release."""

    digest: Sha256
    scope: tuple[Scope, ...]
    channel: Channel
    who: str
    given_utc: str
    expires_utc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCounts:
    """Progress of a transfer in image bytes, and what crossed the network for it."""

    total: int = 0
    written: int = 0
    skipped: int = 0
    fetched: int = 0
    expected_fetch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCounts:
    """Image bytes by where they came from."""

    resume: int = 0
    copy: int = 0
    patch: int = 0
    pack: int = 0
    zero: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """One report of a running transfer or read-back."""

    counts: ByteCounts
    by_source: SourceCounts = field(default_factory=SourceCounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """The latest outcome worth telling a person about."""

    code: str
    text: str
    step: str
    at_utc: str
    digest: str = ""


class BootEnd(StrEnum):
    """How a boot came to its end, as far as hardware and kernel kept evidence of it."""

    SWITCHED_OFF = "switched-off"
    """Neither watchdog nor panic: somebody took the power away."""
    FAULT = "fault"
    """Watchdog, panic, or another fault that the hardware reports."""
    UNKNOWN = "unknown"
    """This hardware cannot tell."""


class CheckResult(StrEnum):
    """Outcome of one health check."""

    OK = "ok"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """One named check of a trial boot."""

    name: str
    result: CheckResult
    detail: str
    is_final: bool = False
    """Repeating cannot help: the content is wrong, not slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the health checks of one boot concluded. Valid for that boot only."""

    boot_id: str
    healthy: bool
    checks: tuple[HealthCheck, ...]

    @property
    def failed(self) -> tuple[HealthCheck, ...]:
        """The checks that were not green."""
        return tuple(check for check in self.checks if check.result is CheckResult.FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The interlock's answer to one question."""

    allow: bool
    reasons: tuple[str, ...] = ()
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lease the interlock confirmed: the injector is locked while it lasts."""

    lease_id: str
    sealed: bool = False
    from_previous_boot: bool = False


class DataState(StrEnum):
    """Where the data set of this boot stands."""

    READY = "ready"
    WORKING = "working"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataStatus:
    """The data set that the running release needs."""

    state: DataState
    code: str = ""
    detail: str = ""
