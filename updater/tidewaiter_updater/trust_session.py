"""What this product asks of a repository, on top of TUF: which role may sign which path, and how large it may be. Child only.

Order of one session, which is the order of update-engine.md section 5.2: 1. refresh from the root in the image; 2. find the
document among the targets of its role; 3. fetch it, exact length and hash; 4. firmware parts of a release must be signed by
`injector-firmware`, too; 5. floors and expiry; 6. sync the cached metadata; 7. reply.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES, Release

from tidewaiter_updater.errors import TrustError
from tidewaiter_updater.sources import checked_path
from tidewaiter_updater.trust_files import Chain
from tidewaiter_updater.trust_tuf import SignedTarget, TufSession
from tidewaiter_updater.trust_wire import LISTING_LIMIT, Listed, Subject, Verified

RELEASE_CHAIN: Final[Chain] = ("targets", "os")
FIRMWARE_CHAIN: Final[Chain] = ("targets", "injector-firmware")
_PRODUCT: Final = r"[a-z0-9][a-z0-9-]{0,31}"
_VERSION: Final = r"[0-9A-Za-z.+-]{1,64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Who signs a kind of document, under which names."""

    pattern: re.Pattern[str]
    expected: str
    chain: Chain
    limit_bytes: int
    may_be_absent: bool


_RULES: Final = {
    Subject.RELEASE: _Rule(
        pattern=re.compile(rf"releases/{_PRODUCT}/{_VERSION}/release\.json", re.ASCII),
        expected="releases/<product>/<version>/release.json",
        chain=RELEASE_CHAIN,
        limit_bytes=RELEASE_LIMIT_BYTES,
        may_be_absent=False,
    ),
    Subject.PERMIT: _Rule(
        pattern=re.compile(rf"permits/{_PRODUCT}/[0-9a-f]{{16}}\.json", re.ASCII),
        expected="permits/<product>/<digest16>.json",
        chain=("targets",),
        limit_bytes=RELEASE_LIMIT_BYTES,
        may_be_absent=True,
    ),
}


def verify(
    session: TufSession,
    subject: Subject,
    what: str,
    *,
    holds: Callable[[str, int], bool] = lambda name, length: True,
) -> Verified:
    """Run the session.

    Args:
        holds: Whether the repository really has a file of that name and length. Asked for a listing: the metadata on a medium
            names every release that ever was, the medium holds one.

    Raises:
        TrustError: The repository is at fault, or our own disk (trust.storage).
        SourceError: The way to it is.
    """
    with session.explained():
        if subject is Subject.LISTING:
            return _listing(session, what, holds=holds)
        rule = _RULES[subject]
        if not rule.pattern.fullmatch(what):
            raise _never_asked_for(f"{subject.value} path", what, rule.expected)
        session.refresh()
        target = _signed(session, what, chain=rule.chain, may_be_absent=rule.may_be_absent)
        data = session.fetch(target.info, limit_bytes=rule.limit_bytes) if target is not None else b""
        if subject is Subject.RELEASE:
            _require_firmware_signed(session, data, release_path=what)
        versions = session.finish()
        proven_utc = _proven_utc(session, data) if subject is Subject.RELEASE else None
        return Verified(document=data, versions=versions, proven_utc=proven_utc)


def _listing(session: TufSession, product: str, *, holds: Callable[[str, int], bool]) -> Verified:
    if not re.fullmatch(_PRODUCT, product, re.ASCII):
        raise _never_asked_for("product", product, _PRODUCT)
    session.refresh()
    wanted = re.compile(rf"releases/{product}/{_VERSION}/release\.json", re.ASCII)
    # Asking for any path of the product loads the role that signs them, and shows which one it is.
    probe = f"releases/{product}/0/release.json"
    session.target(probe)
    roles = dict(session.files.walk(probe))
    found = []
    for path, info in sorted(roles[RELEASE_CHAIN].targets.items() if RELEASE_CHAIN in roles else ()):
        if wanted.fullmatch(path) and "sha256" in info.hashes and holds(session.file_name(info), info.length):
            found.append(Listed(path=path, sha256=info.hashes["sha256"]))
    if len(found) > LISTING_LIMIT:
        raise TrustError(
            f"repository: holds {len(found)} releases of {product}, at most {LISTING_LIMIT} can be listed; name one",
            code="trust.target",
            retryable=False,
        )
    return Verified(listing=tuple(found), versions=session.finish())


def _signed(
    session: TufSession, path: str, *, chain: Chain, may_be_absent: bool = False
) -> SignedTarget | None:
    """What exactly the role at the end of `chain`, and no other, signs for `path`."""
    target = session.target(checked_path(path))
    if target is None:
        if may_be_absent:
            return None
        raise TrustError(f"{path}: the repository signs no such target; not installed", code="trust.target")
    if target.chain != chain:
        raise TrustError(
            f"{path}: signed by role {'/'.join(target.chain)}, expected {'/'.join(chain)}; refused",
            code="trust.target",
        )
    return target


def _require_firmware_signed(session: TufSession, data: bytes, *, release_path: str) -> None:
    """Whoever signs the system's image does not thereby sign what moves a syringe: two roles, two sets of keys."""
    try:
        release = Release.parse(data)
    except PayloadError:
        return  # the engine parses it again, and says what is wrong with it
    for part in release.firmware:
        firmware = _signed(session, part.path, chain=FIRMWARE_CHAIN)
        if firmware is None or (firmware.info.length, firmware.info.hashes.get("sha256")) != (
            part.length,
            part.sha256,
        ):
            raise TrustError(
                f"{part.path}: role {FIRMWARE_CHAIN[-1]} signs other bytes than {release_path} names; refused",
                code="trust.target",
            )


def _proven_utc(session: TufSession, data: bytes) -> datetime | None:
    with contextlib.suppress(PayloadError):
        # A typing error in a release must not make the floor expire every later piece of metadata.
        return min(Release.parse(data).built_utc, session.files.targets(RELEASE_CHAIN[-1]).expires)
    return None


def _never_asked_for(kind: str, what: str, expected: str) -> TrustError:
    return TrustError(
        f"{kind} {what[:80]!r}: expected {expected}; refused", code="trust.target", retryable=False
    )
