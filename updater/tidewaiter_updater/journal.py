"""What the updater remembers between starts: the open transaction, what each slot holds, which releases failed here.

All of it is a hint (invariant I3). A file that is lost, damaged or newer than this program counts as absent; the boot
environment and the slot content then tell the same story at the price of hashing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from tidewaiter_core.clock import parse_utc
from tidewaiter_core.model import Sha256, SlotName

from tidewaiter_updater.model import (
    Channel,
    CheckResult,
    Consent,
    HealthCheck,
    Last,
    Scope,
    SlotRecord,
    Verdict,
    txn_of,
)
from tidewaiter_updater.phases import Hint, Phase

logger = logging.getLogger(__name__)

QUARANTINE_LIMIT = 64
REFUSAL_LIMIT = 32


class Documents(Protocol):
    """The state directory: small documents and blobs, each written atomically and durably."""

    def load(self, name: str) -> dict[str, Any] | None:
        """The document, None when absent or not usable; an unusable file is kept as evidence."""

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace the document; on storage when this returns."""

    def read_blob(self, name: str) -> bytes | None:
        """The bytes stored under `name`, None when absent."""

    def write_blob(self, name: str, data: bytes, *, keep: Collection[str] = ()) -> None:
        """Replace the bytes; on storage when this returns. Older blobs beside them may go, but none named in `keep`."""

    def free_bytes(self) -> int:
        """What may still be written below the state directory's budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """The transaction in hand."""

    phase: Phase
    digest: Sha256
    target: SlotName
    source: str
    since_utc: str
    closed: bool = False
    attempts: int = 0
    staged_root: str = ""
    from_version: str = ""
    consent: Consent | None = None
    verdict: Verdict | None = None
    last: Last | None = None
    network_proven_utc: str = ""
    clock_was_low: bool = False
    """The clock was below the floor when the release was last looked at before its start."""
    refund_boot: str = ""
    """Boot id in which a try was given back, so that it is given back once."""

    def hint(self, *, quarantined: bool) -> Hint:
        """The part that `phases.classify` may look at."""
        return Hint(
            phase=self.phase,
            txn=txn_of(self.digest),
            target=self.target,
            closed=self.closed,
            quarantined=quarantined,
            failed=self.verdict is not None and not self.verdict.healthy,
        )


class Journal:
    """Typed access to the state documents. Commands and the worker share it: what is read to be changed stays locked."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._changing = threading.Lock()

    def entry(self) -> JournalEntry | None:
        """The transaction in hand, None when none is known."""
        document = self._documents.load("journal")
        return _decoded("journal", document, _entry) if document is not None else None

    def save_entry(self, entry: JournalEntry) -> None:
        self._documents.save("journal", _encoded(entry))

    def slots(self) -> dict[SlotName, SlotRecord]:
        """What was last proven to be in each slot."""
        document = self._documents.load("slots") or {}
        records = {name: _decoded("slots", document.get(name.value), _record) for name in SlotName}
        return {name: record for name, record in records.items() if record is not None}

    def save_slot(self, slot: SlotName, record: SlotRecord) -> None:
        with self._changing:
            records = self.slots() | {slot: record}
            self._documents.save("slots", {name.value: asdict(value) for name, value in records.items()})

    def quarantined(self) -> dict[str, str]:
        """Transactions that failed on this device, with the reason; keyed by txn because a lost journal leaves only that."""
        return _texts(self._documents.load("quarantine"))

    def quarantine(self, txn: str, reason: str) -> None:
        with self._changing:
            known = self.quarantined()
            known.pop(txn, None)
            known[txn] = reason
            kept = dict(list(known.items())[-QUARANTINE_LIMIT:])
            self._documents.save("quarantine", {"releases": kept, "order": list(kept)})

    def clear_quarantine(self, txn: str) -> None:
        with self._changing:
            kept = {name: reason for name, reason in self.quarantined().items() if name != txn}
            self._documents.save("quarantine", {"releases": kept, "order": list(kept)})

    def refusals(self) -> dict[str, str]:
        """Refusals that were already audited, so that each poll does not add the same record again."""
        return _texts(self._documents.load("refusals"))

    def note_refusal(self, what: str, code: str) -> None:
        with self._changing:
            known = self.refusals()
            known.pop(what, None)
            known[what] = code
            kept = dict(list(known.items())[-REFUSAL_LIMIT:])
            self._documents.save("refusals", {"releases": kept, "order": list(kept)})

    def offered_by(self, digest: Sha256) -> str:
        """The source that offered a release last."""
        return _texts(self._documents.load("offers")).get(digest, "relay")

    def note_offer(self, digest: Sha256, source: str) -> None:
        with self._changing:
            known = _texts(self._documents.load("offers"))
            if known.pop(digest, None) == source:
                return
            known[digest] = source
            kept = dict(list(known.items())[-REFUSAL_LIMIT:])
            self._documents.save("offers", {"releases": kept, "order": list(kept)})

    def network_proven_utc(self) -> str:
        """When the server last answered this device, empty if it never did."""
        document = self._documents.load("network")
        return _moment(document.get("proven_utc")) if document is not None else ""

    def note_network(self, now_utc: str) -> None:
        with self._changing:
            self._documents.save("network", {"proven_utc": now_utc})

    def release_bytes(self, digest: Sha256) -> bytes | None:
        """The signed release document that hashes to `digest`, None when it is not (or no longer exactly) stored."""
        data = self._documents.read_blob(f"release/{digest}.json")
        return data if data is not None and Sha256.of(data) == digest else None

    def save_release(self, digest: Sha256, data: bytes) -> None:
        self._documents.write_blob(
            f"release/{digest}.json", data, keep=[f"release/{used}.json" for used in self._in_use()]
        )

    def permit_bytes(self, digest: Sha256) -> bytes | None:
        """The downgrade permit that was found with `digest`, None if there was none."""
        return self._documents.read_blob(f"permit/{digest}.json") or None

    def save_permit(self, digest: Sha256, data: bytes | None) -> None:
        """Keep a permit, or that a release has none (any more)."""
        if data != self.permit_bytes(digest):
            self._documents.write_blob(
                f"permit/{digest}.json", data or b"", keep=[f"permit/{used}.json" for used in self._in_use()]
            )

    def _in_use(self) -> set[Sha256]:
        """Releases whose documents are still needed: the one in hand, and what the slots hold.

        Without its document a trial is judged without its health requirements, and any number of others may be looked at.
        """
        entry = self.entry()
        return {record.digest for record in self.slots().values()} | ({entry.digest} if entry else set())

    def free_bytes(self) -> int:
        return self._documents.free_bytes()


def _encoded(entry: JournalEntry) -> dict[str, Any]:
    return asdict(entry)


def _decoded(name: str, document: Any, decode: Any) -> Any:
    if document is None:
        return None
    try:
        return decode(document)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        logger.warning(
            "%s: not what this program writes (%s: %s); treated as absent", name, type(err).__name__, err
        )
        return None


def _entry(document: Mapping[str, Any]) -> JournalEntry:
    consent, verdict, last = document.get("consent"), document.get("verdict"), document.get("last")
    return JournalEntry(
        phase=Phase(document["phase"]),
        digest=Sha256.parse(document["digest"]),
        target=SlotName(document["target"]),
        source=str(document["source"]),
        since_utc=str(document["since_utc"]),
        closed=document["closed"] is True,
        attempts=int(document["attempts"]),
        staged_root=str(document.get("staged_root", "")),
        from_version=str(document.get("from_version", "")),
        consent=parse_consent(consent) if consent else None,
        verdict=_verdict(verdict) if verdict else None,
        last=_last(last) if last else None,
        network_proven_utc=_moment(document.get("network_proven_utc")),
        clock_was_low=document.get("clock_was_low") is True,
        refund_boot=str(document.get("refund_boot", "")),
    )


def parse_consent(document: Mapping[str, Any]) -> Consent:
    """A consent from its JSON form; KeyError or ValueError when it is not one."""
    parse_utc(str(document["expires_utc"]))  # whoever asks whether it covers something must get an answer
    return Consent(
        digest=Sha256.parse(document["digest"]),
        scope=tuple(Scope(item) for item in document["scope"]),
        channel=Channel(document["channel"]),
        who=str(document["who"]),
        given_utc=str(document["given_utc"]),
        expires_utc=str(document["expires_utc"]),
    )


def _verdict(document: Mapping[str, Any]) -> Verdict:
    checks = tuple(
        HealthCheck(name=str(row["name"]), result=CheckResult(row["result"]), detail=str(row["detail"]))
        for row in document["checks"]
    )
    return Verdict(boot_id=str(document["boot_id"]), healthy=document["healthy"] is True, checks=checks)


def _last(document: Mapping[str, Any]) -> Last:
    return Last(
        code=str(document["code"]),
        text=str(document["text"]),
        step=str(document["step"]),
        at_utc=str(document["at_utc"]),
        digest=str(document.get("digest", "")),
    )


def _record(document: Mapping[str, Any]) -> SlotRecord:
    return SlotRecord(
        digest=Sha256.parse(document["digest"]),
        root=Sha256.parse(document["root"]),
        sequence=int(document["sequence"]),
        epoch=int(document["epoch"]),
        version=str(document["version"]),
    )


def _moment(value: Any) -> str:
    """A moment as it was written, empty if it is none."""
    text = str(value or "")
    try:
        parse_utc(text)
    except ValueError:
        return ""
    return text


def _texts(document: Mapping[str, Any] | None) -> dict[str, str]:
    """A table of texts in the order it was written; documents are stored with sorted keys, so the order is kept beside."""
    if document is None:
        return {}
    releases, order = document.get("releases"), document.get("order")
    if not isinstance(releases, dict) or not isinstance(order, list):
        return {}
    return {str(name): str(releases[name]) for name in order if name in releases}


def with_phase(entry: JournalEntry, phase: Phase, *, now_utc: str) -> JournalEntry:
    """`entry` in another phase since now."""
    return replace(entry, phase=phase, since_utc=now_utc)
