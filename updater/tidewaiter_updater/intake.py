"""How a release comes to be the one in hand: a command begins it, joins it, or agrees to it. Nothing is done to the device here.

One transaction at a time: another release is refused while one is open, and nothing is begun on a device that is degraded.
"""

from __future__ import annotations

from tidewaiter_core.audit import Actor
from tidewaiter_core.model import Sha256

from tidewaiter_updater.errors import EngineBusyError, EngineRefusedError, OfferRefusedError
from tidewaiter_updater.journal import JournalEntry
from tidewaiter_updater.model import Consent
from tidewaiter_updater.offers import Offers
from tidewaiter_updater.phases import IN_TRIAL, WRITING, Phase
from tidewaiter_updater.transaction import Transaction


class Intake:
    """What commands may change about the transaction before its work begins."""

    def __init__(self, transaction: Transaction, offers: Offers) -> None:
        self._t = transaction
        self._offers = offers

    def install(
        self, digest: Sha256, *, source: str | None, consent: Consent | None, actor: Actor, is_local: bool
    ) -> None:
        """Begin, or go on with, an installation; arguments and rules as for `Engine.install`."""
        transaction = self._t
        source = source or transaction.journal.offered_by(digest)
        with transaction.lock:
            self._require_sound()
            if consent is not None:
                _require_for(consent, digest)
            if transaction.phase in IN_TRIAL or transaction.phase is Phase.ARMED or transaction.pending:
                raise EngineBusyError("the device is about to switch releases", phase=transaction.phase.value)
            open_digest = transaction.open_digest()
            if open_digest is not None and open_digest != digest:
                raise EngineBusyError(
                    f"release {open_digest[:16]} is in hand; cancel it first", phase=transaction.phase.value
                )
            if open_digest is None:
                self._open(digest, source=source, is_local=is_local)
            if consent is not None:
                self._note_consent(consent, actor)
            transaction.actor = actor
            if is_local or transaction.phase not in WRITING or transaction.waits_for_source():
                transaction.take_from(source)
            transaction.retry_at_s = None
            transaction.save()
        transaction.touch()

    def agree(self, consent: Consent, actor: Actor) -> None:
        """Record a consent to the release in hand."""
        with self._t.lock:
            self.require_in_hand(consent.digest)
            self._note_consent(consent, actor)
            self._t.save()
        self._t.touch()

    def require_in_hand(self, digest: Sha256) -> None:
        """Raises OfferRefusedError (release.unknown) for any other release."""
        in_hand = self._t.open_digest()
        if in_hand != digest:
            found = in_hand[:16] if in_hand else "none"
            raise OfferRefusedError(
                f"release {digest[:16]} is not in hand (found {found})", code="release.unknown"
            )

    def _open(self, digest: Sha256, *, source: str, is_local: bool) -> None:
        transaction = self._t
        release = self._offers.stored(digest)
        self._offers.judge(release, is_local=is_local)
        booted = transaction.booted
        if booted is None:
            raise EngineRefusedError("the booted slot is unknown", code="boot.slot-mismatch")
        transaction.release = release
        transaction.cancel_code = None
        # A window, or a pause, was meant for the release that was in hand then.
        transaction.window_open = transaction.paused = False
        transaction.entry = JournalEntry(
            phase=Phase.WAIT_CONSENT,
            digest=digest,
            target=booted.other,
            source=source,
            since_utc=transaction.now_utc(),
            from_version=transaction.identity.version,
            network_proven_utc=transaction.journal.network_proven_utc(),
            clock_was_low=transaction.is_clock_low(),
        )
        transaction.last = None
        transaction.enter(Phase.WAIT_CONSENT)

    def _note_consent(self, consent: Consent, actor: Actor) -> None:
        if self._t.entry is None or consent == self._t.entry.consent:
            return
        self._t.ports.audit.append(
            "consent.given",
            actor=actor,
            fields={
                "digest": str(consent.digest),
                "release": self._t.release_name(),
                "scopes": [scope.value for scope in consent.scope],
                "channel": consent.channel.value,
                "expires_utc": consent.expires_utc,
                "detail": consent.who,
            },
        )
        self._t.amend(consent=consent)

    def _require_sound(self) -> None:
        code = self._t.degraded
        if code is not None:
            raise EngineRefusedError(
                f"the device is degraded ({code}); nothing is installed until that is solved", code=code
            )


def _require_for(consent: Consent, digest: Sha256) -> None:
    if consent.digest != digest:
        raise EngineRefusedError(
            f"consent is for release {consent.digest[:16]}, not for {digest[:16]}; not recorded",
            code="update.consent",
        )
