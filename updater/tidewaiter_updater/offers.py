"""Is this signed release for this device, now? Every refusal has its own code and changes nothing.

Order: what the document itself says (schema, requires), for whom (product, hw), then against what runs (from, sequence, epoch,
data), then local history (quarantine, rollout, space). The floors are the effective ones of update-engine.md section 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidewaiter_core.audit import Actor, Outcome
from tidewaiter_core.clock import format_utc
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.consent import SitePolicy
from tidewaiter_updater.downgrade import fetch_permit, require_permit
from tidewaiter_updater.errors import OfferRefusedError, TrustError
from tidewaiter_updater.model import SlotRecord, txn_of
from tidewaiter_updater.transaction import Transaction

SPACE_FOR_TABLES_BYTES = 4 * 1024 * 1024
"""Beyond index and patch head: journal, release document, kept hash table, audit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A release, and whether this device would install it."""

    release: Release
    installable: bool
    code: str
    detail: str
    target: SlotName
    expected_fetch: int


class Offers:
    """Judges releases."""

    def __init__(self, transaction: Transaction) -> None:
        self._t = transaction

    def check(self, source: str, release_path: str, *, actor: Actor, is_local: bool) -> Offer:
        """Fetch and verify the metadata, store the release document, and judge it.

        Raises:
            TrustError, SourceError, PayloadError: There is no release to judge.
        """
        try:
            data = self._t.ports.trust.check(source, release_path)
            release = Release.parse(data, limits=self._t.limits)
            if self._t.goes_back(release):
                fetch_permit(self._t, source, release)
        except TidewaiterError as err:
            if isinstance(err, TrustError) or err.code.startswith(("release.", "payload.")):
                self._audit_refusal(release_path, err.code, digest="", name=release_path, actor=actor)
            raise
        self._t.journal.save_release(release.digest, data)
        self._t.journal.note_offer(release.digest, source)
        return self._offer(release, source, actor=actor, is_local=is_local)

    def _offer(self, release: Release, source: str, *, actor: Actor, is_local: bool) -> Offer:
        target = self._target
        try:
            self.judge(release, is_local=is_local)
        except OfferRefusedError as err:
            name = f"{release.product} {release.version}"
            self._audit_refusal(release.digest, err.code, digest=release.digest, name=name, actor=actor)
            if err.retryable:
                raise  # not this release's fault: no verdict on it, the caller asks again
            return Offer(
                release=release,
                installable=False,
                code=err.code,
                detail=str(err),
                target=target,
                expected_fetch=0,
            )
        fetch = self._t.ports.slots.expected_fetch_bytes(target, release, source)
        return Offer(
            release=release, installable=True, code="", detail="", target=target, expected_fetch=fetch
        )

    def judge(self, release: Release, *, is_local: bool = False) -> None:
        """Raise OfferRefusedError unless this device may install `release`."""
        self._fits_device(release)
        self._fits_running(release)
        self._is_not_quarantined(release)
        self._is_rolled_out(release, is_local=is_local)
        self._fits_state_directory(release)
        self._fits_data_directory(release)
        self._fits_boot_loader(release)

    def permit(self, release: Release) -> None:
        """Judge again before the slot loses its content: a consent may have been awaited for days, and a restart long.

        Not the rollout: it decides whether a transaction begins, and an operator's began without it.
        """
        self.permit_start(release)
        self._fits_state_directory(release)
        self._fits_data_directory(release)
        self._fits_boot_loader(release)

    def permit_start(self, release: Release) -> None:
        """Judge once more before the device starts into it: site policy, floors and quarantine may have changed since."""
        self._fits_device(release)
        self._fits_running(release)
        self._is_not_quarantined(release)

    def _fits_device(self, release: Release) -> None:
        site, name = self._t.site, _name(release)
        if not site.updates or site.consent is SitePolicy.DENY:
            raise OfferRefusedError(f"{name}: site policy forbids updates; refused", code="update.disabled")
        if release.product != site.product:
            raise OfferRefusedError(
                f"{name}: made for product {release.product}, this is {site.product}; refused",
                code="release.hw",
            )
        if site.hw not in release.hw:
            raise OfferRefusedError(
                f"{name}: made for hardware {', '.join(release.hw)}, this is {site.hw}; refused",
                code="release.hw",
            )

    def _fits_running(self, release: Release) -> None:
        identity, floors, name = self._t.identity, self._t.ports.floors.effective(), _name(release)
        if release.security_epoch < floors.security_epoch:
            raise OfferRefusedError(
                f"{name}: security epoch {release.security_epoch} is below the floor of {floors.security_epoch}; refused",
                code="release.epoch",
            )
        running = self._t.running_record()
        if running is not None and running.digest == release.digest:
            return  # repair of the other slot
        if self._t.goes_back(release):
            require_permit(self._t, release)
        elif identity.sequence not in release.from_range:
            raise OfferRefusedError(
                f"{name}: installs over sequences {release.from_range.min_sequence} to {release.from_range.max_sequence}, "
                f"{identity.sequence} runs; refused",
                code="release.from",
            )
        present = self._present_schema(running)
        if present is not None and not release.data.reads_min <= present <= release.data.reads_max:
            raise OfferRefusedError(
                f"{name}: reads data schemas {release.data.reads_min} to {release.data.reads_max}, "
                f"this device has {present}; refused",
                code="release.data-schema",
            )

    def _present_schema(self, running: SlotRecord | None) -> int | None:
        """What the running release writes; the image says so, and if it does not, its stored document may."""
        if self._t.identity.data is not None:
            return self._t.identity.data.writes
        stored = self._t.load_release(running.digest) if running is not None else None
        return stored.data.writes if stored is not None else None

    def _is_not_quarantined(self, release: Release) -> None:
        name = _name(release)
        reason = self._t.journal.quarantined().get(txn_of(release.digest))
        if reason is not None:
            raise OfferRefusedError(
                f"{name}: failed on this device before ({reason}); refused until a newer release or a clearing",
                code="release.quarantined",
            )

    def _is_rolled_out(self, release: Release, *, is_local: bool) -> None:
        rollout, name = release.rollout, _name(release)
        if rollout is not None and not is_local:
            if not rollout.includes(self._t.site.serial):
                raise OfferRefusedError(
                    f"{name}: not yet rolled out to this device; refused", code="release.rollout"
                )
            now = self._t.ports.clock.now_utc()
            if now < rollout.not_before_utc:
                raise OfferRefusedError(
                    f"{name}: rolled out from {format_utc(rollout.not_before_utc)} on, it is {format_utc(now)}; refused",
                    code="release.rollout",
                )

    def _fits_state_directory(self, release: Release) -> None:
        name = _name(release)
        heads = max((patch.head_bytes for patch in release.slot.patches), default=0)
        needed = release.slot.index.length + heads + SPACE_FOR_TABLES_BYTES
        free = self._t.journal.free_bytes()
        if free < needed:
            raise OfferRefusedError(
                f"{name}: needs {needed} bytes in the state directory, {free} are free; refused, nothing was changed",
                code="update.no-space",
                retryable=True,  # room may be made any time: the deployment waits for it
            )

    def _fits_data_directory(self, release: Release) -> None:
        shortage = self._t.ports.data.shortage(release.data)
        if shortage is not None:
            raise OfferRefusedError(
                f"{_name(release)}: {shortage}; refused, nothing was changed",
                code="update.no-space",
                retryable=True,
            )

    def _fits_boot_loader(self, release: Release) -> None:
        self._t.ports.kernels.require(self._target, release)

    @property
    def _target(self) -> SlotName:
        return (self._t.booted or SlotName.A).other

    def _audit_refusal(self, what: str, code: str, *, digest: str, name: str, actor: Actor) -> None:
        """Once per release and code: a device polls every minute, the log is for years."""
        if self._t.journal.refusals().get(what) == code:
            return
        self._t.ports.audit.append(
            "update.refused",
            actor=actor,
            outcome=Outcome.MINOR,
            fields={"release": name[:256], "digest": digest, "code": code},
        )
        self._t.journal.note_refusal(what, code)

    def stored(self, digest: Sha256) -> Release:
        """The verified document of `digest`; OfferRefusedError when Check has not stored it (any more)."""
        release = self._t.load_release(digest)
        if release is None:
            raise OfferRefusedError(
                f"release {digest[:16]}: no verified document is stored; call Check for it first",
                code="release.unknown",
            )
        return release


def _name(release: Release) -> str:
    return f"{release.product} {release.version}"
