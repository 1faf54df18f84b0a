"""The closed list of audit record kinds: how durable each is, and which fields it may carry. Pure.

Source: security-and-audit.md section 5. An unknown kind or field is a programming error (ValueError), found
    by the first test that runs the line. What a value says is data: texts are cut to length, visibly,
    instead of failing an append.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FIELDS_LIMIT = 16
TEXT_LIMIT = 256
TEXTS_LIMIT = 16
INT_LIMIT = 2**53


class Durability(StrEnum):
    """When a record is on the medium."""

    ACTION = "A"
    """Before the action that it records; never suppressed."""
    SECOND = "B"
    """Within a second."""
    RELAXED = "C"
    """Within five seconds; counted instead of stored when space is short."""


class FieldType(StrEnum):
    """What a field may hold."""

    TEXT = "text"
    INT = "int"
    BOOL = "bool"
    TEXTS = "texts"


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table."""

    name: str
    durability: Durability
    fields: Mapping[str, FieldType]


_EVERY = "code detail"
_UPDATE = "release from digest sequence:int slot source code"
_CONSENT = "grant scopes:texts incident duration_s:int digest release action channel expires_utc reason"
_SESSION = (
    "session ticket grant incident services:texts max_s:int reason transcript_sha256"
    " duration_s:int bytes_up:int bytes_down:int streams:int commands:int"
)
_IDENTITY = "spki_sha256 not_after serial issuer reason"

# (names, class, fields; text unless said otherwise)
_TABLE: tuple[tuple[str, Durability, str], ...] = (
    ("process.started process.stopped", Durability.SECOND, "version reset_cause reason exit_code:int"),
    ("network.attached network.detached", Durability.RELAXED, "interface"),
    ("server.authenticated", Durability.SECOND, "result issuer status:int"),
    ("local.login local.logout", Durability.SECOND, "uid:int"),
    ("consent.given consent.refused consent.revoked consent.expired", Durability.ACTION, _CONSENT),
    ("session.started session.ended", Durability.ACTION, _SESSION),
    ("session.refused command.refused", Durability.SECOND, "session ticket action count:int"),
    ("session.stream", Durability.SECOND, "session service level bytes:int"),
    ("local_service.started local_service.ended", Durability.ACTION, "service reason"),
    ("override.started override.ended", Durability.ACTION, "what who"),
    ("config.changed", Durability.ACTION, "keys:texts sha256_old sha256_new area"),
    ("identity.enrolled identity.renewed identity.failed", Durability.ACTION, _IDENTITY),
    ("identity.revoked identity.wiped", Durability.ACTION, _IDENTITY),
    ("update.installing update.staged update.armed update.committed", Durability.ACTION, _UPDATE),
    ("update.rolled_back update.failed update.refused", Durability.ACTION, _UPDATE),
    ("injector_firmware.applied injector_firmware.failed", Durability.ACTION, "board from to sha256 release"),
    ("interlock.denied interlock.held interlock.lost", Durability.SECOND,
     "reasons:texts purpose lease reason sealed_ms:int"),
    ("injector.link", Durability.RELAXED, "state from to reason driver identity serial"),
    ("injector.log_gap", Durability.RELAXED, "log from:int to:int count:int serial log_id:int"),
    # The injector's own logs, entry by entry; `number` and `event` are the injector's codes.
    ("injector.fault", Durability.SECOND,
     "serial log_id:int seq:int boot_id:int ms:int utc_s:int number:int severity:int board:int argument:int"),
    ("injector.injection", Durability.SECOND,
     "serial log_id:int seq:int boot_id:int start_ms:int utc_s:int protocol_id:int channel:int planned_ul:int"
     " delivered_ul:int peak_ul_per_s:int peak_kpa:int duration_ms:int end:int"),
    ("injector.event", Durability.SECOND, "serial log_id:int seq:int boot_id:int ms:int event:int a:int b:int"),
    ("hardware.changed", Durability.SECOND, "what old new"),
    ("operator.changed", Durability.ACTION, "uid:int group"),
    ("outbox.dropped", Durability.SECOND, "item class count:int bytes:int"),
    ("audit.opened audit.closed", Durability.ACTION, "origin reason previous_origin head_sha256"),
    ("audit.recovered", Durability.ACTION, "bytes:int sha256 file"),
    ("audit.gap", Durability.ACTION, "count:int"),
    ("audit.suppressed", Durability.ACTION, "kind actor count:int"),
    ("audit.disk_low audit.full", Durability.ACTION, "bytes:int budget_bytes:int reason"),
    ("audit.read audit.exported audit.personal_erased", Durability.SECOND,
     "range format component from_seq:int to_seq:int"),
    ("clock.stepped clock.state", Durability.ACTION, "before after offset_ms:int"),
    ("diagnostics.collected", Durability.SECOND, "id sha256 bytes:int"),
)  # fmt: skip


def _fields(text: str) -> dict[str, FieldType]:
    pairs = (item.partition(":") for item in f"{text} {_EVERY}".split())
    return {name: FieldType(kind or "text") for name, _, kind in pairs}


KINDS: Mapping[str, Kind] = {
    name: Kind(name, durability, _fields(fields))
    for names, durability, fields in _TABLE
    for name in names.split()
}

_ENDS = (
    "session.ended session.refused consent.revoked consent.expired local_service.ended override.ended"
    " update.committed update.rolled_back update.failed process.stopped"
    " audit.closed audit.full audit.gap audit.suppressed"
)
LAST_WORDS = frozenset(_ENDS.split())
"""What may use the reserve of a full disk: ends of things. Beginnings are refused (fail closed)."""


def kind_of(name: str) -> Kind:
    """The row of `name`; ValueError if the list does not have it."""
    try:
        return KINDS[name]
    except KeyError:
        raise ValueError(f"audit kind {name!r} is not in the closed list of audit_kinds") from None


def checked_fields(kind: Kind, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` as they may stand in a record: None left out, long texts and lists cut with a mark.

    Raises:
        ValueError: A field that `kind` does not have, or a value of another type.
    """
    result: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        field = kind.fields.get(name)
        if field is None:
            raise ValueError(f"audit kind {kind.name} has no field {name!r}; it has {', '.join(kind.fields)}")
        result[name] = _checked(f"{kind.name}.{name}", field, value)
    if len(result) > FIELDS_LIMIT:
        raise ValueError(f"audit kind {kind.name}: {len(result)} fields, at most {FIELDS_LIMIT} are allowed")
    return result


def _checked(where: str, field: FieldType, value: Any) -> Any:
    match field:
        case FieldType.TEXT:
            if isinstance(value, str):
                return fit_text(value, TEXT_LIMIT)
        case FieldType.BOOL:
            if isinstance(value, bool):
                return value
        case FieldType.INT:
            if isinstance(value, int) and not isinstance(value, bool):
                return max(-INT_LIMIT + 1, min(int(value), INT_LIMIT - 1))
        case FieldType.TEXTS:
            if isinstance(value, list | tuple | set | frozenset) and all(
                isinstance(text, str) for text in value
            ):
                return fit_texts(sorted(value) if isinstance(value, set | frozenset) else list(value))
    raise ValueError(f"audit field {where}: expected {field.value}, found a {type(value).__name__}")


def fit_text(text: str, limit: int) -> str:
    """`text` in valid Unicode and at most `limit` characters; a cut shows as an ellipsis."""
    clean = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def fit_texts(texts: list[str], *, count: int = TEXTS_LIMIT, limit: int = TEXT_LIMIT) -> list[str]:
    """At most `count` texts; the last one says how many are not shown."""
    shown = texts if len(texts) <= count else [*texts[: count - 1], f"… {len(texts) - count + 1} more"]
    return [fit_text(text, limit) for text in shown]
