"""One TUF session over one repository: python-tuf, plus what it leaves undone. Child only.

What python-tuf 7 does not do and this does (update-engine.md section 5.3):
1. It always starts from the root in the image: with `bootstrap=None` a cut between remove and symlink of root.json is final.
2. Every version is held against floors that outlive the cache: with timestamp and snapshot emptied by a power cut, python-tuf
   accepts an older, once valid repository.
3. Every expiry is held against the trusted time: python-tuf believes a clock at 1970.
4. The cache is tidied before and made durable after.
5. Targets are fetched by our own source, and only by sha256 or sha512: python-tuf is content with md5.

The floors themselves are written by the parent, after it has checked a whole reply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from tidewaiter_core.errors import TidewaiterError
from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.sources import Source
from tidewaiter_updater.trust_cache import sync, tidy
from tidewaiter_updater.trust_faults import expired, is_page, page_error, translated
from tidewaiter_updater.trust_fetch import METADATA_URL, SourceFetcher
from tidewaiter_updater.trust_files import Chain, VerifiedFiles
from tidewaiter_updater.trust_versions import Versions, require_not_below, restarted

_HASHES: Final = ("sha256", "sha512")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTarget:
    """What a role says about a target."""

    info: TargetFile
    chain: Chain
    """The roles that lead to the one that signs it."""


class TufSession:
    """One refresh, then any number of targets out of that one state of the repository."""

    def __init__(
        self, source: Source, *, metadata_dir: Path, root: bytes, trusted_now: datetime, floors: Versions
    ) -> None:
        """
        Args:
            root: The first trusted root, from the read-only image.
            trusted_now: What expiry dates are held against.
            floors: The least version of each role.
        """
        self._source = source
        self._dir = metadata_dir
        self._root = root
        self._now = trusted_now
        self._floors = floors
        self._config = UpdaterConfig()
        self._fetcher = SourceFetcher(source, self._config)
        self._updater: Updater | None = None
        self._used = {"targets"}
        """Targets roles whose metadata this session relies on."""
        self.files = VerifiedFiles(metadata_dir)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Every error inside becomes one of ours.

        Raises:
            TrustError: The repository is at fault, or our own disk (trust.storage).
            SourceError: The way to it is.
        """
        try:
            yield
        except TidewaiterError:
            raise
        except OSError as err:
            raise TrustError(
                f"{self._dir}: metadata cannot be kept ({err.strerror or err}); nothing was changed",
                code="trust.storage",
            ) from err
        except Exception as err:
            raise translated(err, fetcher=self._fetcher, now=self._now) from err

    def refresh(self) -> None:
        """Bring the top-level metadata up to date; once, before anything else."""
        tidy(self._dir)
        self._updater = Updater(
            str(self._dir), METADATA_URL, fetcher=self._fetcher, config=self._config, bootstrap=self._root
        )
        self._updater.refresh()

    def target(self, path: str) -> SignedTarget | None:
        """What the repository signs for `path`, None if nothing.

        Raises:
            TrustError: trust.hash-policy, or its metadata does not verify.
        """
        if self._updater is None:
            raise RuntimeError("target() before refresh()")
        info = self._updater.get_targetinfo(path)
        for chain, _ in self.files.walk(path):
            self._used.add(chain[-1])
        if info is None:
            return None
        if set(info.hashes) - set(_HASHES) or not info.hashes:
            raise TrustError(
                f"{path}: expected sha256 or sha512, found {', '.join(sorted(info.hashes)) or 'no hash'}; refused",
                code="trust.hash-policy",
            )
        return SignedTarget(info=info, chain=self.files.signer(path))

    def fetch(self, info: TargetFile, *, limit_bytes: int) -> bytes:
        """The bytes of a target, exactly as long as signed and with the signed hash.

        Raises:
            TrustError: It is signed as larger than `limit_bytes`.
            SourceError: They did not arrive so.
        """
        if not 0 < info.length <= limit_bytes:
            raise TrustError(
                f"{info.path}: {info.length} bytes, expected 1..{limit_bytes} for what it is; refused",
                code="trust.target",
            )
        data = b"".join(self._source.span(self.file_name(info), 0, info.length))
        try:
            info.verify_length_and_hashes(data)
        except exceptions.LengthOrHashMismatchError as err:
            if is_page(data):
                raise page_error(info.path) from err
            raise SourceError(
                f"{info.path}: bytes do not have the signed hash; not used", code="source.bad-bytes"
            ) from err
        return data

    def file_name(self, info: TargetFile) -> str:
        """The name under which the repository serves a target."""
        if not self.files.root().consistent_snapshot:
            return info.path
        folder, slash, name = info.path.rpartition("/")
        return f"{folder}{slash}{info.hashes.get('sha256') or info.hashes['sha512']}.{name}"

    def finish(self) -> Versions:
        """Hold versions against the floors and expiries against the trusted time, make the cache durable.

        Raises:
            TrustError: trust.rollback or trust.expired; nothing that this session found may be used.
        """
        versions = self.files.versions()
        require_not_below(self._floors, versions)
        silent = (self._floors.keys() & self.files.delegated()) - versions.keys()
        if silent - restarted(self._floors, versions):
            raise TrustError(
                f"repository: {', '.join(sorted(silent))} is delegated to, but the snapshot no longer names its version; "
                "nothing is used",
                code="trust.rollback",
            )
        # Only of what was used: a role that was not may lie expired in the cache.
        for name, signed, expires in self.files.expiries(self._used):
            if signed.is_expired(self._now):
                raise expired(name, expires, now=self._now)
        sync(self._dir)
        return versions
