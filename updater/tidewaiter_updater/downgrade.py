"""Going back to an older release: only with a permit that the repository signs and a consent given at the device.

The permit is fetched when the release is offered and kept beside its document; each judgment reads it again, because it may
have ended since, and because another release may run by then.

Source: update-engine.md section 5.4.
"""

from __future__ import annotations

from tidewaiter_core.clock import parse_utc
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.errors import OfferRefusedError
from tidewaiter_updater.permit import Permit, parse_permit, permit_path
from tidewaiter_updater.transaction import Transaction


def fetch_permit(transaction: Transaction, source: str, release: Release) -> None:
    """Keep the permit that the repository has for `release` now, or that it has none.

    Raises:
        TrustError, SourceError: It cannot tell.
    """
    data = transaction.ports.trust.permit(source, permit_path(release.product, release.digest))
    transaction.journal.save_permit(release.digest, data)


def require_permit(transaction: Transaction, release: Release) -> Permit:
    """The permit under which this device may go back to `release` now.

    Raises:
        OfferRefusedError: release.sequence without a permit, release.permit with one that does not cover this.
    """
    name = f"{release.product} {release.version}"
    data = transaction.journal.permit_bytes(release.digest)
    if data is None:
        raise OfferRefusedError(
            f"{name}: sequence {release.sequence} is not above {transaction.lowest_sequence()} "
            f"({transaction.identity.version} runs), and no permit allows to go back; refused",
            code="release.sequence",
        )
    if transaction.ports.kernels.newest_wins:
        raise OfferRefusedError(
            f"{name}: this boot loader starts the newest version, whatever a permit allows; refused",
            code="release.permit",
        )
    try:
        permit = parse_permit(data)
    except ValueError as err:
        raise OfferRefusedError(
            f"{name}: its permit cannot be read: {err}; refused", code="release.permit"
        ) from err
    running = transaction.running_record()
    # The clock of a device may stand in 1970, and a permit must not come back to life with it.
    now = max(transaction.ports.clock.now_utc(), parse_utc(transaction.ports.floors.effective().time_utc))
    objection = permit.objection(
        running=running.digest if running is not None else None,
        digest=release.digest,
        serial=transaction.site.serial,
        now=now,
    )
    if objection is not None:
        raise OfferRefusedError(f"{name}: {objection}; refused", code="release.permit")
    return permit


def going_back(transaction: Transaction) -> str:
    """For the audit log: under which permit the release in hand goes back, empty if it goes forward."""
    release = transaction.release
    if release is None or not transaction.goes_back(release):
        return ""
    permit = require_permit(transaction, release)
    return (
        f"; goes back from sequence {transaction.identity.sequence} to {release.sequence}, "
        f"permit until {permit.not_after_utc:%Y-%m-%d}: {permit.reason}"
    )
