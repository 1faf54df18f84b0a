"""What a person is shown: the Status of io.tidewaiter.Updater. Progress bars and feedback render nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tidewaiter_core.payload.release import Release

from tidewaiter_updater.advice import what_to_do
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.model import BootEnv, Channel, Last
from tidewaiter_updater.offers import Offer
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.transaction import Transaction
from tidewaiter_updater.transfer import MAX_ATTEMPTS

NOTE_CHARS = 2048


def render_release(release: Release) -> dict[str, Any]:
    """The type Release of the interface."""
    return {
        "digest": str(release.digest),
        "product": release.product,
        "version": release.version,
        "sequence": release.sequence,
        "security_epoch": release.security_epoch,
        # What cannot be undone is agreed to at the device, whatever the release asks for.
        "consent": release.policy.consent.value if release.data.reversible else Channel.LOCAL.value,
        "reversible": release.data.reversible,
        "risk": release.policy.risk.value,
        "activation": release.policy.activation.value,
        "notes": {language: text[:NOTE_CHARS] for language, text in release.notes.items()},
    }


def render_offer(offer: Offer) -> dict[str, Any]:
    """The type Offer of the interface."""
    return {
        "release": render_release(offer.release),
        "installable": offer.installable,
        "code": offer.code,
        "detail": offer.detail,
        "target": offer.target.value,
        "expected_fetch": offer.expected_fetch,
    }


def render_last(last: Last) -> dict[str, Any]:
    """The type Last of the interface."""
    return asdict(last) | {"what_to_do": what_to_do(last.code)}


def render_status(transaction: Transaction) -> dict[str, Any]:
    """The type Status of the interface, of this moment."""
    env = _env(transaction)
    running = transaction.running_record()
    floors = transaction.ports.floors.effective()
    with transaction.lock:
        entry, release, last = transaction.entry, transaction.release, transaction.last
        speed, remaining = _pace(transaction)
        return {
            "phase": transaction.phase.value,
            "paused": transaction.paused,
            "degraded": transaction.degraded,
            "release": render_release(release) if release is not None else None,
            "digest": str(entry.digest) if entry is not None else None,
            "target": entry.target.value if entry is not None else None,
            "source": entry.source if entry is not None else None,
            "booted": transaction.booted.value if transaction.booted else "",
            "committed": env.committed.value if env else "",
            "running": {
                "version": transaction.identity.version,
                "sequence": transaction.identity.sequence,
                "digest": str(running.digest) if running else None,
            },
            "bytes": asdict(transaction.progress.counts),
            "by_source": asdict(transaction.progress.by_source),
            "speed_bytes_per_s": speed,
            "remaining_s": remaining,
            "waiting_for": list(transaction.waiting_for),
            "tries_left": env.left
            if env and env.trial
            else max(0, MAX_ATTEMPTS - (entry.attempts if entry else 0)),
            "floors": asdict(floors),
            "last": render_last(last) if last is not None else None,
            "since_utc": transaction.since_utc,
        }


def _env(transaction: Transaction) -> BootEnv | None:
    """A status is shown also, above all, when the environment cannot be read."""
    try:
        return transaction.env()
    except BootEnvError:
        return None


def _pace(transaction: Transaction) -> tuple[int, int | None]:
    """Speed lately, and the seconds that the phase will still take, None when nobody can tell."""
    if transaction.phase not in (Phase.TRANSFER, Phase.VERIFY):
        return 0, None
    counts = transaction.progress.counts
    done = counts.written + counts.skipped
    speed = transaction.pace.speed_bytes_per_s(done, at_s=transaction.ports.clock.boottime_s())
    return speed, max(0, counts.total - done) // speed if speed > 0 else None
