"""A real TUF repository in a directory, with its keys, that a test can break in the ways the world breaks one.

Everything in it is made by the release tool; only the damage is done here. Times come from `clock`: python-tuf's client
judges expiry by the machine's own clock, so the default is that one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import STANDARD, Limits, Release
from tidewaiter_release.build import BuildSpec, build
from tidewaiter_release.repository import (
    ROLES,
    Desk,
    Store,
    WallClock,
    init_repository,
    publish,
    refresh,
    rotate_keys,
)
from tidewaiter_release.repository.signing import commit, describe, prepare_online, write_files
from tidewaiter_release.repository.store import State
from tuf.api.metadata import Metadata, TargetFile

PRODUCT = "contrast-injector"
HARDWARE = "ci-300"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRelease:
    """A build on disk, published or not."""

    directory: Path
    """Holds release.json, index.twci, pack.twpk."""
    image: Path
    """The image it was built from."""
    release: Release

    @property
    def path(self) -> str:
        """Target path of its release.json."""
        return self.release.path

    @property
    def digest(self) -> Sha256:
        return self.release.digest


class TestRepository:
    """The manufacturer's release desk, its online signer, and whoever tampers with their files."""

    __test__ = False  # a world, not a test class

    def __init__(
        self,
        directory: Path,
        *,
        clock: WallClock | None = None,
        lifetimes: Mapping[str, timedelta] | None = None,
        limits: Limits = STANDARD,
        product: str = PRODUCT,
        hw: str = HARDWARE,
    ) -> None:
        """Make keys and an empty repository below `directory`, or use those that are there (a copy of another world).

        Args:
            lifetimes: How long metadata of a role lives, instead of the product's numbers.
            limits: Toy chunk sizes, if the world under test uses them too.
        """
        self.directory = directory
        self.repo = directory / "repository"
        self.keys = directory / "keys"
        self.builds = directory / "builds"
        self.product = product
        self.hw = hw
        self.clock: WallClock = clock if clock is not None else SystemClock()
        self.desk = Desk(keys=self.keys, clock=self.clock, lifetimes=lifetimes or {})
        self._limits = limits
        if not self.repo.exists():
            init_repository(self.repo, self.keys, clock=self.clock, desk=self.desk)
        self.store: Store = Store(self.repo)

    @property
    def metadata(self) -> Path:
        """What a server serves as /tuf/metadata."""
        return self.repo / "metadata"

    @property
    def targets(self) -> Path:
        """What a server serves as /tuf/targets."""
        return self.repo / "targets"

    @property
    def trusted_root(self) -> Path:
        """The root that a device carries in its image."""
        return self.metadata / "1.root.json"

    def make_release(
        self,
        image: bytes | Path,
        version: str,
        sequence: int,
        *,
        patch_from: Sequence[Path] = (),
        **options: Any,
    ) -> MadeRelease:
        """Build a release of an image; not published yet.

        Args:
            patch_from: Older images or builds to make patches from.
            options: Further fields of `BuildSpec`, such as consent, tries, health_required, security_epoch; those not
                given are the friendliest to a test: no consent, no health checks, no hold.
        """
        directory = self.builds / version
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            image_path = image
        else:
            image_path = directory / "image"
            image_path.write_bytes(image)
        fields: dict[str, Any] = {
            "product": self.product,
            "hw": (self.hw,),
            "built_utc": datetime(2026, 1, 1, tzinfo=UTC),
            "fs": "ext4",
            "health_deadline_s": 60,
            "health_hold_s": 0,
            **options,
        }
        spec = BuildSpec(version=version, sequence=sequence, **fields)
        release = build(
            image_path,
            directory,
            spec,
            level=3,
            patch_from=patch_from,
            patch_level=3,
            limits=self._limits,
        )
        return MadeRelease(directory=directory, image=image_path, release=release)

    def publish(self, made: MadeRelease) -> str:
        """Publish a build; returns the target path of its release.json."""
        return publish(self.store, self.desk, made.directory, limits=self._limits).path

    def add_release(self, image: bytes | Path, version: str, sequence: int, **options: Any) -> MadeRelease:
        """Build and publish."""
        made = self.make_release(image, version, sequence, **options)
        self.publish(made)
        return made

    def refresh(self) -> None:
        """What the online signer does every few hours."""
        refresh(self.store, self.desk)

    def rotate_root(self, *roles: str) -> None:
        """Publish the next root, with new keys for the given top-level roles (none: only a new version)."""
        rotate_keys(self.store, self.desk, roles)

    # What goes wrong

    def flip_pack_byte(self, made: MadeRelease, offset: int = 64) -> Path:
        """Change one byte of a published pack; returns the file."""
        return self.flip_byte(made.release.slot.pack.path, offset)

    def flip_byte(self, target: str, offset: int = 0) -> Path:
        """Change one byte of a published target."""
        path = self.file_of(target)
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x01
        path.write_bytes(data)
        return path

    def file_of(self, target: str) -> Path:
        """Where the file of a target lies."""
        return self.store.target_path(self._target(self.store.load(), target))

    def file_of_role(self, role: str) -> Path:
        """The current metadata file of a role."""
        state = self.store.load()
        if role == "timestamp":
            return self.metadata / "timestamp.json"
        if role == "root":
            return self.metadata / f"{state.root.signed.version}.root.json"
        if role == "snapshot":
            return self.metadata / f"{state.snapshot.signed.version}.snapshot.json"
        return self.metadata / f"{state.targets_role(role).signed.version}.{role}.json"

    def forge_metadata(self, role: str, *, with_online_keys: bool = False) -> Path:
        """Change what a role says, without its keys; returns the file.

        The change is a later expiry: as long as before, so that no length gives it away. The signatures stop to match.

        Args:
            with_online_keys: The intruder holds the snapshot and timestamp keys (a stolen online signer) and signs a
                snapshot that names the forgery, so that only the signature of the forged role itself can give it away.
                Only for a targets role, which then names one more target, too.
        """
        path = self.file_of_role(role)
        state = self.store.load()
        data = path.read_bytes()
        document = json.loads(data)
        expires = document["signed"]["expires"]
        if with_online_keys:
            document["signed"]["expires"] = "2099-01-01T00:00:00Z"
            document["signed"]["targets"]["releases/forged/6.6.6/release.json"] = {
                "length": 1,
                "hashes": {"sha256": Sha256.of(b"x")},
            }
            data = json.dumps(document).encode()
        else:
            data = data.replace(expires.encode(), f"2099{expires[4:]}".encode())
        path.write_bytes(data)
        if with_online_keys:
            version = int(document["signed"]["version"])
            state.snapshot.signed.meta[f"{role}.json"] = describe(version, data)
            write_files(self.store, prepare_online(state, self.desk, renew_snapshot=True))
        return path

    def sign_with_foreign_keys(self, role: str) -> Path:
        """Replace every signature of a role's file by one of a key that nobody trusts; returns the file."""
        path = self.file_of_role(role)
        metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
        metadata.sign(CryptoSigner.generate_ed25519())
        path.write_bytes(metadata.to_bytes())
        return path

    def expire(self, role: str, *, ago: timedelta = timedelta(hours=1)) -> None:
        """Sign the role, and whatever names it, with an expiry that lies in the past."""
        past = {**self.desk.lifetimes, role: -ago}
        desk = Desk(keys=self.keys, clock=self.clock, lifetimes=past)
        if role == "root":
            rotate_keys(self.store, desk, ())
            return
        state = self.store.load()
        if role in ("snapshot", "timestamp"):
            write_files(self.store, prepare_online(state, desk, renew_snapshot=True))
        else:
            commit(self.store, state, desk, changed=[role])

    def keep_copy(self, name: str) -> Path:
        """Keep the repository as it is now, for `rollback_to`."""
        copy = self.directory / "copies" / name
        shutil.copytree(self.repo, copy)
        return copy

    def rollback_to(self, copy: Path) -> None:
        """Serve an older state again, as a replaying server would; everything in it is rightly signed."""
        shutil.rmtree(self.repo)
        shutil.copytree(copy, self.repo)

    def drop_signatures(self, role: str, *, keep: int) -> Path:
        """Leave only `keep` signatures in a role's file; returns the file."""
        path = self.file_of_role(role)
        document = json.loads(path.read_bytes())
        document["signatures"] = document["signatures"][:keep]
        path.write_bytes(json.dumps(document).encode())
        return path

    def add_target(
        self, role: str, path: str, data: bytes, *, hashes: Mapping[str, str] | None = None
    ) -> None:
        """Sign any file by any targets role: with the role's keys everything is possible that the client must refuse."""
        state = self.store.load()
        signed_hashes = dict(hashes) if hashes is not None else {"sha256": str(Sha256.of(data))}
        state.targets_role(role).signed.targets[path] = TargetFile(len(data), signed_hashes, path)
        directory, _, name = path.rpartition("/")
        place = self.targets / directory
        place.mkdir(parents=True, exist_ok=True)
        for digest in signed_hashes.values():
            (place / f"{digest}.{name}").write_bytes(data)
        self._commit(state, [role])

    def _commit(self, state: State, changed: Collection[str]) -> None:
        commit(self.store, state, self.desk, changed=changed)

    def _target(self, state: State, path: str) -> TargetFile:
        for metadata in (state.targets, *state.delegated.values()):
            if path in metadata.signed.targets:
                return metadata.signed.targets[path]
        raise KeyError(f"{path}: no target of this repository; roles are {', '.join(ROLES)}")
