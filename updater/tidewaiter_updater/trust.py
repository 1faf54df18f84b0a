"""One trust session, as a process of its own: `python -I -m tidewaiter_updater.trust`, request on stdin, reply on stdout.

The only module that imports tuf. It runs as a child because tuf and its cryptography would stay in the service's memory during
the transfer, and because hostile metadata is parsed here: what falls over is this process, under its own memory limit.

The child connects to the relay socket itself, once per span, with the same RelaySource as the service. The design also allows
a connected descriptor; but a Varlink upgrade ends its connection, so that would need a second protocol for the parent to serve
spans, and it would gain nothing: both processes have the same user, and the relay checks exactly that user.

Order of one session, which is the order of update-engine.md section 5.2:
1. refresh from the root in the read-only image (always as `bootstrap`: with None a cut between remove and symlink of root.json
   is final); 2. find the release among the targets of role `os`; 3. fetch it, exact length and hash; 4. compare every role's
version with the floors, and every expiry with the trusted time (python-tuf believes a clock at 1970, and after a power cut
that left timestamp and snapshot empty it accepts an older repository); 5. firmware parts must be signed by
`injector-firmware` too; 6. sync the cached metadata; 7. reply. The floors themselves are written by the parent, after it has
checked a whole reply: a child that dies anywhere changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import resource
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from tidewaiter_core.clock import SystemClock, format_utc
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES, Release
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from tidewaiter_updater.errors import SourceError, SourceRefusedError, TrustError
from tidewaiter_updater.sources import RelaySource, Source, checked_path
from tidewaiter_updater.trust_cache import sync, tidy
from tidewaiter_updater.trust_wire import (
    REQUEST_LIMIT_BYTES,
    Fault,
    Request,
    RoleFloor,
    Verified,
    Versions,
    require_not_below,
)

DATA_LIMIT_BYTES: Final = 128 * 1024 * 1024
LIFETIME_S: Final = 310
"""Ten seconds more than the parent waits: an orphan ends by itself."""
RELEASE_ROLE: Final = "os"
FIRMWARE_ROLE: Final = "injector-firmware"
_METADATA_URL: Final = "tw:///metadata/"
_RELEASE_PATH: Final = re.compile(
    r"releases/[a-z0-9][a-z0-9-]{0,31}/[0-9A-Za-z.+-]{1,64}/release\.json", re.ASCII
)
_HASHES: Final = ("sha256", "sha512")
_S = TypeVar("_S", bound=Signed)


class RelayFetcher(FetcherInterface):
    """Gives python-tuf metadata from a `Source`, and remembers what it got for the explanation of a fault."""

    def __init__(self, source: Source, config: UpdaterConfig) -> None:
        self._source = source
        self._limits = {
            "root": config.root_max_length,
            "timestamp": config.timestamp_max_length,
            "snapshot": config.snapshot_max_length,
        }
        self._other_limit = config.targets_max_length
        self.failure: SourceError | None = None
        self.last = b""
        """The last metadata file fetched, as far as it came."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(url.removeprefix(_METADATA_URL))
        role = name.removesuffix(".json").rpartition(".")[2]
        self.last = b""
        # The library does not wrap what a generator raises after its first byte, so all of it is mapped here.
        try:
            for piece in self._source.metadata(name, self._limits.get(role, self._other_limit)):
                self.last += piece
                yield piece
        except SourceRefusedError as err:
            raise exceptions.DownloadHTTPError(str(err), err.status) from err
        except SourceError as err:
            self.failure = err
            if err.code == "source.slow":
                raise exceptions.SlowRetrievalError(str(err)) from err
            raise exceptions.DownloadError(str(err)) from err


class Session:
    """A trust session over one repository and one metadata directory."""

    def __init__(self, source: Source, *, metadata_dir: Path, root: bytes, trusted_now: datetime) -> None:
        self._source = source
        self._dir = metadata_dir
        self._root = root
        self._now = trusted_now
        config = UpdaterConfig()
        self._fetcher = RelayFetcher(source, config)
        self._config = config
        self._used = {"targets"}
        """Targets roles whose metadata this session relies on."""

    def verify(self, release_path: str, floors: Versions) -> Verified:
        """Run the session.

        Raises:
            TrustError: The repository is at fault, or our own disk (trust.storage).
            SourceError: The way to it is.
        """
        if not _RELEASE_PATH.fullmatch(release_path):
            raise TrustError(
                f"release path {release_path[:80]!r}: expected releases/<product>/<version>/release.json; refused",
                code="trust.target",
                retryable=False,
            )
        try:
            return self._verify(release_path, floors)
        except TidewaiterError:
            raise
        except OSError as err:
            raise TrustError(
                f"{self._dir}: metadata cannot be kept ({err.strerror or err}); nothing was changed",
                code="trust.storage",
            ) from err
        except Exception as err:
            raise self._translated(err) from err

    def _verify(self, release_path: str, floors: Versions) -> Verified:
        tidy(self._dir)
        updater = Updater(
            str(self._dir), _METADATA_URL, fetcher=self._fetcher, config=self._config, bootstrap=self._root
        )
        updater.refresh()
        info = self._target(updater, release_path, role=RELEASE_ROLE)
        data = self._fetched(info)
        with contextlib.suppress(PayloadError):  # the engine parses it again, and says what is wrong with it
            for part in Release.parse(data).firmware:
                firmware = self._target(updater, part.path, role=FIRMWARE_ROLE)
                if (firmware.length, firmware.hashes.get("sha256")) != (part.length, part.sha256):
                    raise TrustError(
                        f"{part.path}: role {FIRMWARE_ROLE} signs other bytes than {release_path} names; refused",
                        code="trust.target",
                    )
        versions = self._versions()
        require_not_below(floors, versions)
        self._check_expiry()
        sync(self._dir)
        return Verified(release=data, versions=versions, proven_utc=self._proven_utc(data))

    def _target(self, updater: Updater, path: str, *, role: str) -> TargetFile:
        """What `role`, and no other role, signs for `path`."""
        info = updater.get_targetinfo(checked_path(path))
        if info is None:
            raise TrustError(
                f"{path}: the repository signs no such target; not installed", code="trust.target"
            )
        if set(info.hashes) - set(_HASHES) or not info.hashes:
            raise TrustError(
                f"{path}: expected sha256 or sha512, found {', '.join(sorted(info.hashes)) or 'no hash'}; refused",
                code="trust.hash-policy",
            )
        self._used.add(role)
        signer = self._signer(path)
        if signer != role:
            raise TrustError(
                f"{path}: signed by role {signer}, expected {role}; refused", code="trust.target"
            )
        return info

    def _signer(self, path: str) -> str:
        """The role whose verified metadata the client took `path` from: the same walk, over the files it just verified."""
        targets = self._signed("targets", Targets)
        if path in targets.targets:
            return "targets"
        if targets.delegations is not None:
            for role, terminating in targets.delegations.get_roles_for_target(path):
                if path in self._signed(role, Targets).targets:
                    return role
                if terminating:
                    break
        return "nested delegation"

    def _fetched(self, info: TargetFile) -> bytes:
        if not 0 < info.length <= RELEASE_LIMIT_BYTES:
            raise TrustError(
                f"{info.path}: {info.length} bytes, a release document has 1..{RELEASE_LIMIT_BYTES}; refused",
                code="trust.target",
            )
        digest = info.hashes.get("sha256") or info.hashes["sha512"]
        folder, slash, name = info.path.rpartition("/")
        data = b"".join(self._source.span(f"{folder}{slash}{digest}.{name}", 0, info.length))
        try:
            info.verify_length_and_hashes(data)
        except exceptions.LengthOrHashMismatchError as err:
            if _is_page(data):
                raise _page_error(info.path) from err
            raise SourceError(
                f"{info.path}: bytes do not have the signed hash; not used", code="source.bad-bytes"
            ) from err
        return data

    def _versions(self) -> Versions:
        """Version and key set of every role that the verified metadata names."""
        root, targets = self._signed("root", Root), self._signed("targets", Targets)
        snapshot = self._signed("snapshot", Snapshot)
        versions = {"root": root.version, "timestamp": self._signed("timestamp", Timestamp).version}
        versions |= {"snapshot": snapshot.version, "targets": targets.version}
        keys = {role: _key_set(root, root.roles[role].keyids) for role in versions}
        if targets.delegations is not None and targets.delegations.roles is not None:
            for name, role in targets.delegations.roles.items():
                meta = snapshot.meta.get(f"{name}.json")
                if meta is None:
                    raise TrustError(
                        f"repository: role {name} is delegated but not in the snapshot; nothing is used"
                    )
                versions[name] = meta.version
                keys[name] = _key_set(targets.delegations, role.keyids)
        return {role: RoleFloor(version=version, keys=keys[role]) for role, version in versions.items()}

    def _check_expiry(self) -> None:
        """Again, with the trusted time: python-tuf believes the wall clock. Roles that were not used may be cached expired."""
        self._require_unexpired("root", self._signed("root", Root))
        self._require_unexpired("timestamp", self._signed("timestamp", Timestamp))
        self._require_unexpired("snapshot", self._signed("snapshot", Snapshot))
        for role in sorted(self._used):
            self._require_unexpired(role, self._signed(role, Targets))

    def _require_unexpired(self, role: str, signed: Signed) -> None:
        if signed.is_expired(self._now):
            raise self._expired(f"{role}.json", format_utc(signed.expires))

    def _proven_utc(self, data: bytes) -> datetime | None:
        try:
            built_utc = Release.parse(data).built_utc
        except PayloadError:
            return None
        # A typing error in a release must not make the floor expire every later piece of metadata.
        return min(built_utc, self._signed(RELEASE_ROLE, Targets).expires)

    def _signed(self, role: str, kind: type[_S]) -> _S:
        metadata = Metadata[Any].from_bytes((self._dir / f"{role}.json").read_bytes())
        if not isinstance(metadata.signed, kind):
            raise TrustError(
                f"{self._dir}/{role}.json: expected {kind.__name__} metadata; nothing of it is used"
            )
        return metadata.signed

    def _translated(self, err: Exception) -> TidewaiterError:
        """Whose fault is it? A page of a proxy is the network's, anything else that does not parse is the repository's."""
        if self._fetcher.failure is not None and isinstance(err, exceptions.DownloadError):
            return self._fetcher.failure
        if isinstance(err, exceptions.DownloadHTTPError):
            return SourceError(f"repository: metadata is refused: {err}")
        if _is_page(self._fetcher.last) and isinstance(
            err,
            DeserializationError
            | exceptions.LengthOrHashMismatchError
            | exceptions.DownloadLengthMismatchError,
        ):
            return _page_error("metadata")
        if isinstance(err, exceptions.UnsignedMetadataError):
            return TrustError(
                f"repository: not signed by enough of its keys: {err}; refused", code="trust.threshold"
            )
        if isinstance(err, exceptions.ExpiredMetadataError):
            return self._expired(str(err).removesuffix(" is expired"), self._stated_expiry())
        if isinstance(err, exceptions.BadVersionNumberError):
            return TrustError(f"repository: {err}; an older state is refused", code="trust.rollback")
        return TrustError(f"repository: {type(err).__name__}: {err}; nothing of it is used")

    def _expired(self, what: str, expires: str) -> TrustError:
        return TrustError(
            f"repository: {what} expired {expires}, it is {format_utc(self._now)}; nothing of it is used",
            code="trust.expired",
        )

    def _stated_expiry(self) -> str:
        """What the file that was refused says about itself: for the message only."""
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            return str(json.loads(self._fetcher.last)["signed"]["expires"])[:40]
        return "before that"


def _key_set(delegator: Any, keyids: list[str]) -> str:
    """A digest of keys, not of their names: a key id is only what the metadata calls it."""
    keys = sorted(
        json.dumps([key.keytype, key.scheme, key.keyval], sort_keys=True)
        for keyid in keyids
        if (key := delegator.keys.get(keyid)) is not None
    )
    return hashlib.sha256("\n".join(keys).encode("utf-8")).hexdigest()


def _is_page(data: bytes) -> bool:
    return data.lstrip()[:1] == b"<"


def _page_error(what: str) -> SourceError:
    return SourceError(
        f"repository: expected {what}, found a web page (a proxy's block page?); the network has to let it through",
        code="source.not-metadata",
    )


def answer(data: bytes) -> Verified | Fault:
    """The reply to one request."""
    try:
        request = Request.decode(data)
        root = Path(request.root_file).read_bytes()
    except (ValueError, OSError) as err:
        return Fault(code="trust.child", message=f"trust request: {err}", retryable=False)
    session = Session(
        RelaySource(Path(request.relay_socket), clock=SystemClock()),
        metadata_dir=Path(request.metadata_dir),
        root=root,
        trusted_now=request.trusted_now,
    )
    try:
        return session.verify(request.release_path, request.floors)
    except TidewaiterError as err:
        return Fault(code=err.code, message=str(err), retryable=err.retryable)


def main() -> int:
    """Entry point of the child."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT_BYTES, DATA_LIMIT_BYTES))
    signal.alarm(LIFETIME_S)
    reply = answer(sys.stdin.buffer.read(REQUEST_LIMIT_BYTES + 1))
    sys.stdout.buffer.write(reply.encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
