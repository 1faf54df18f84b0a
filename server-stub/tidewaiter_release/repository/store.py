"""The repository on disk: reads it only as far as it verifies, writes it so that a client never sees half of it.

Layout: `metadata/{N.root,N.targets,N.<role>,N.snapshot,timestamp}.json` and hash-prefixed files under `targets/`;
`media/metadata/` is the other side, with a root of its own over the same targets (update-engine.md section 5.1).
Targets are placed first, under names that nothing knows yet. Then the new metadata is written beside the old, in a directory of
links to it, and the two directories change places in one step: after a cut at any point a reader finds the old state or the
new one, also when a root changes the timestamp's keys. What a crash left behind is named by nothing; the next attempt removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tidewaiter_core.durable import write_atomic
from tidewaiter_core.errors import StateError
from tuf.api.exceptions import RepositoryError as TufRepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from tidewaiter_release.errors import InputError, RepositoryBusyError, RepositoryError
from tidewaiter_release.repository.roles import MAX_ROOT_ROTATIONS, Side
from tidewaiter_release.repository.swap import exchange

_COPY_BYTES = 2**20
_LIMIT_BYTES = 16 * 2**20

_S = TypeVar("_S", Root, Timestamp, Snapshot, Targets)


@dataclass(slots=True, kw_only=True)
class State:
    """The verified current metadata. Changed in memory, then signed and written by `signing.commit`."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    delegated: dict[str, Metadata[Targets]]
    side: Side = Side.ONLINE

    def targets_role(self, role: str) -> Metadata[Targets]:
        return self.targets if role == "targets" else self.delegated[role]

    def all(self) -> list[tuple[str, Metadata[Any]]]:
        """Every role with its metadata, in the order in which a client reads them."""
        return [
            ("root", self.root),
            ("timestamp", self.timestamp),
            ("snapshot", self.snapshot),
            ("targets", self.targets),
            *self.delegated.items(),
        ]

    def document(self, role: str) -> Root | Timestamp | Snapshot | Targets:
        """What a role says.

        Raises:
            RepositoryError: There is no such role here.
        """
        found = dict(self.all()).get(role)
        if found is None:
            raise RepositoryError(f"{self.side.desk_name(role)}: no role of this repository")
        signed: Root | Timestamp | Snapshot | Targets = found.signed
        return signed

    def verify(self, role: str, metadata: Metadata[_S]) -> None:
        """Check the signatures of `metadata` against whoever delegates to `role`."""
        delegator: Root | Targets = self.targets.signed if role in self.delegated else self.root.signed
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


class Store:
    """One repository directory, seen from one of its two sides."""

    def __init__(self, directory: Path, *, side: Side = Side.ONLINE) -> None:
        self.directory = directory
        self.side = side
        self.metadata = directory / ("metadata" if side is Side.ONLINE else "media/metadata")
        self.targets = directory / "targets"

    @property
    def media(self) -> Store:
        """The side that sticks are made from."""
        return Store(self.directory, side=Side.MEDIA)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the repository for writing.

        Raises:
            RepositoryBusyError: Another process holds it.
            RepositoryError: There is no repository.
        """
        try:
            fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise RepositoryError(f"{self.directory}: no repository that can be written: {err}") from err
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as err:
            raise RepositoryBusyError(
                f"{self.directory}: another process is publishing; nothing was changed"
            ) from err
        finally:
            os.close(fd)

    def load(self) -> State:
        """The current metadata, each file verified by the one that names it; expiry does not matter here.

        Raises:
            RepositoryError: A file is missing or does not verify. Signing on top of it would sign what an intruder wrote.
        """
        try:
            return self._load()
        except (TufRepositoryError, DeserializationError, ValueError, KeyError) as err:
            raise RepositoryError(
                f"{self.metadata}: does not verify: {err}; nothing is signed on top of it"
            ) from err

    def _load(self) -> State:
        roots = self.roots()
        root = roots[-1]
        timestamp: Metadata[Timestamp] = self._parse("timestamp.json", Timestamp)
        # Between the two renames of a root rotation the old timestamp is still in place, signed by the root before.
        last_error: TufRepositoryError | None = None
        for delegator in reversed(roots[-2:]):
            try:
                delegator.signed.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
                break
            except TufRepositoryError as err:
                last_error = last_error or err
        else:
            if last_error is not None:
                raise last_error
        trusted = delegator.signed
        snapshot = self._named("snapshot", timestamp.signed.snapshot_meta, Snapshot)
        trusted.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
        targets = self._named("targets", snapshot.signed.meta["targets.json"], Targets)
        trusted.verify_delegate("targets", targets.signed_bytes, targets.signatures)
        delegated: dict[str, Metadata[Targets]] = {}
        for role in (targets.signed.delegations.roles or {}) if targets.signed.delegations else {}:
            metadata = self._named(role, snapshot.signed.meta[f"{role}.json"], Targets)
            targets.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            delegated[role] = metadata
        return State(
            root=root,
            timestamp=timestamp,
            snapshot=snapshot,
            targets=targets,
            delegated=delegated,
            side=self.side,
        )

    def roots(self) -> list[Metadata[Root]]:
        """Every root from 1 on, each verified by itself and by the one before.

        Raises:
            RepositoryError: The first one is missing or one does not verify.
        """
        chain: list[Metadata[Root]] = []
        while len(chain) <= MAX_ROOT_ROTATIONS and (self.metadata / f"{len(chain) + 1}.root.json").exists():
            number = len(chain) + 1
            root: Metadata[Root] = self._parse(f"{number}.root.json", Root)
            try:
                for delegator in [*chain[-1:], root]:
                    delegator.signed.verify_delegate("root", root.signed_bytes, root.signatures)
            except (TufRepositoryError, ValueError) as err:
                raise RepositoryError(f"{self.metadata}/{number}.root.json: does not verify: {err}") from err
            if root.signed.version != number:
                raise RepositoryError(
                    f"{self.metadata}/{number}.root.json: holds version {root.signed.version}"
                )
            chain.append(root)
        if not chain:
            raise RepositoryError(f"{self.metadata}/1.root.json: missing; {self.directory} is no repository")
        return chain

    def target_path(self, target: TargetFile) -> Path:
        """Where the file of a target lies: with its hash before its name."""
        directory, _, name = target.path.rpartition("/")
        return self.targets / directory / f"{target.hashes['sha256']}.{name}"

    def relative_path(self, target: TargetFile) -> Path:
        """The same below the folder of the targets, which every mirror and medium shares."""
        return self.target_path(target).relative_to(self.targets)

    def place_target(self, source: Path, target: TargetFile) -> None:
        """Copy a file to its place, whole or not at all; its content was checked and is checked again.

        Raises:
            InputError: It cannot be copied, or changed meanwhile.
        """
        place = self.target_path(target)
        temporary = place.with_name(f".{place.name}.tmp")
        try:
            make_directories(place.parent)
            with source.open("rb") as reader, temporary.open("w+b") as writer:
                while piece := reader.read(_COPY_BYTES):
                    writer.write(piece)
                writer.flush()
                os.fchmod(writer.fileno(), 0o644)
                os.fsync(writer.fileno())
                writer.seek(0)
                target.verify_length_and_hashes(writer)
            temporary.replace(place)
            sync_directories(place.parent, up_to=self.directory)
        except (OSError, TufRepositoryError) as err:
            temporary.unlink(missing_ok=True)
            raise InputError(f"{source}: copying to {place} failed: {err}; nothing was published") from err

    def place_bytes(self, data: bytes, target: TargetFile) -> None:
        """Put a small target in place.

        Raises:
            InputError: It is not what the target says, or the disk refuses.
        """
        place = self.target_path(target)
        try:
            target.verify_length_and_hashes(data)
            make_directories(place.parent)
            write_atomic(place, data, mode=0o644)
        except (OSError, TufRepositoryError, StateError) as err:
            raise InputError(f"{place}: cannot be written: {err}; nothing was published") from err

    def put(self, files: Mapping[str, bytes], *, drop: Collection[str] = ()) -> None:
        """Make `files` the newest metadata and remove those named in `drop`: all of it, or nothing.

        Where directories cannot be exchanged the files are written in their order, each durable before the next.

        Raises:
            RepositoryError: The disk refused; a reader finds the old state.
        """
        draft = self.metadata.with_name(f".{self.metadata.name}.next")
        try:
            make_directories(self.metadata)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            draft.chmod(0o755)
            if not self._link_all(draft, drop=drop):
                self._put_in_order(files, drop=drop)
                return
            for name, data in files.items():
                self.write(draft, name, data)
            sync_directories(draft, up_to=draft)
            if not self.swap(draft):
                self._put_in_order(files, drop=drop)
        except OSError as err:
            raise RepositoryError(
                f"{self.metadata}: cannot be written: {err}; the old state is in place"
            ) from err
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def swap(self, draft: Path) -> bool:
        """Let a new state take the place of the present one in one step; False where that cannot be done."""
        if not exchange(draft, self.metadata):
            return False
        sync_directories(self.metadata.parent, up_to=self.metadata.parent)
        return True

    def write(self, directory: Path, name: str, data: bytes) -> None:
        """Write one metadata file of a new state."""
        write_atomic(directory / name, data, mode=0o644)

    def _link_all(self, draft: Path, *, drop: Collection[str]) -> bool:
        """Links to the present files; False where the file system has none."""
        try:
            for path in self.metadata.iterdir():
                if path.name not in drop and path.suffix == ".json":
                    os.link(path, draft / path.name)
        except OSError as err:
            if err.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                return False
            raise
        return True

    def _put_in_order(self, files: Mapping[str, bytes], *, drop: Collection[str]) -> None:
        for name, data in files.items():
            self.write(self.metadata, name, data)
        for name in drop:
            (self.metadata / name).unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """One metadata file.

        Raises:
            RepositoryError: It cannot be read.
        """
        path = self.metadata / name
        try:
            with path.open("rb") as file:
                data = file.read(_LIMIT_BYTES + 1)
        except OSError as err:
            raise RepositoryError(f"{path}: cannot be read: {err}") from err
        if len(data) > _LIMIT_BYTES:
            raise RepositoryError(f"{path}: larger than the {_LIMIT_BYTES} bytes of the largest metadata")
        return data

    def _named(self, role: str, meta: MetaFile, kind: type[_S]) -> Metadata[_S]:
        name = f"{meta.version}.{role}.json"
        meta.verify_length_and_hashes(self.read(name))
        metadata = self._parse(name, kind)
        if metadata.signed.version != meta.version:
            raise RepositoryError(f"{self.metadata}/{name}: holds version {metadata.signed.version}")
        return metadata

    def _parse(self, name: str, kind: type[_S]) -> Metadata[_S]:
        metadata = Metadata[_S].from_bytes(self.read(name))
        if not isinstance(metadata.signed, kind):
            raise RepositoryError(
                f"{self.metadata}/{name}: holds {metadata.signed.type}, expected {kind.type}"
            )
        return metadata


def make_directories(directory: Path) -> None:
    """Make a directory and its parents readable by the server, whatever the umask of the desk is."""
    if not directory.exists():
        make_directories(directory.parent)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)


def sync_directories(directory: Path, *, up_to: Path) -> None:
    """Make new directory entries durable, from the innermost out."""
    while True:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if directory in (up_to, directory.parent):
            return
        directory = directory.parent
