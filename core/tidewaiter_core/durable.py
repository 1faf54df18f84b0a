"""State that survives a power cut: atomic files, versioned JSON documents, the single-instance lock.

Invariants:
1. After a cut at any point a file holds either its old or its new content, never a mixture, never nothing.
2. `write_atomic` returns only after content and directory entry are on storage.
3. A file that cannot be understood is never changed here; its owner decides (`quarantine` keeps it as evidence).
4. Documents change additively, so that the program in the old slot reads what the new one wrote; a `schema`
   above the known one is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tidewaiter_core.disk import SYSTEM_DISK, Disk, SystemDisk
from tidewaiter_core.errors import SecondInstanceError, StateError, StateWriteError

__all__ = [
    "DOCUMENT_LIMIT_BYTES",
    "Disk",
    "InstanceLock",
    "SystemDisk",
    "load_document",
    "make_directory",
    "quarantine",
    "save_document",
    "write_atomic",
]

DOCUMENT_LIMIT_BYTES: Final = 16 * 1024 * 1024


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, disk: Disk = SYSTEM_DISK) -> None:
    """Replace the content of `path` by `data`; safe against power cuts, other threads and other processes.

    The temporary file has one fixed name per target, so a torn one is overwritten by the next write and
    temporary files never pile up. Its lock serializes writers of the same target.

    Raises:
        StateWriteError: The medium refused; unless the message says otherwise `path` has its old content.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        fd = disk.create(temporary)
        try:
            disk.truncate(fd, 0)
            _write_all(fd, data, disk=disk)
            disk.permit(fd, mode)
            disk.sync(fd)
            disk.replace(temporary, path)
        except OSError:
            # Give the space back: on a full disk the leftover would be part of the problem.
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise
        finally:
            disk.close(fd)
    except OSError as err:
        reason = err.strerror or str(err)
        raise StateWriteError(
            f"{path}: cannot be written ({reason}); its previous content is unchanged"
        ) from err
    try:
        disk.sync_directory(path.parent)
    except OSError as err:
        reason = err.strerror or str(err)
        raise StateWriteError(
            f"{path}: written, but its directory could not be synced ({reason}); it may be lost in a power cut"
        ) from err


def _write_all(fd: int, data: bytes, *, disk: Disk) -> None:
    done = 0
    while done < len(data):
        done += disk.write(fd, data[done:])


def make_directory(path: Path, *, disk: Disk = SYSTEM_DISK) -> None:
    """Create `path` and what is missing above it; on storage when this returns.

    A file in a directory whose own name was never synced can vanish with it in a power cut, however well the file was written.

    Raises:
        StateWriteError: The medium refused.
    """
    missing = [folder for folder in (path, *path.parents) if not disk.exists(folder)]
    try:
        for folder in reversed(missing):
            disk.make_directory(folder)
            disk.sync_directory(folder.parent)
    except OSError as err:
        raise StateWriteError(f"{path}: cannot be created ({err.strerror or err})") from err


def load_document(
    path: Path, *, schema: int, limit_bytes: int = DOCUMENT_LIMIT_BYTES, disk: Disk = SYSTEM_DISK
) -> dict[str, Any] | None:
    """Read what `save_document` wrote, without its `schema` member; None if there is no such file.

    Raises:
        StateError: Unreadable, not one JSON object, a duplicate key, or a schema above `schema`. The file is left alone.
    """
    try:
        data = disk.read(path, limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise StateError(f"{path}: cannot be read ({err.strerror or err}); left as it is") from err
    if len(data) > limit_bytes:
        raise StateError(f"{path}: longer than {limit_bytes} bytes; left as it is")
    document = _parse(path, data)
    found = document.pop("schema", None)
    if type(found) is not int or found < 1:
        raise StateError(
            f'{path}: expected a member "schema" with a number from 1 to {schema}; left as it is'
        )
    if found > schema:
        raise StateError(
            f"{path}: schema {found} was written by a newer program, this one knows up to {schema}; left as it is"
        )
    return document


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise StateError(
            f"{path}: expected one JSON document, found {len(data)} bytes: {err}; left as it is"
        ) from err
    if not isinstance(document, dict):
        raise StateError(f"{path}: expected a JSON object, found {type(document).__name__}; left as it is")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name!r} occurs twice")
            seen.add(name)
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def save_document(
    path: Path, document: Mapping[str, Any], *, schema: int, mode: int = 0o600, disk: Disk = SYSTEM_DISK
) -> None:
    """Write `document` with its `schema` number, atomically; keys are sorted so that equal states are equal bytes.

    Raises:
        StateWriteError: See `write_atomic`.
    """
    if document.get("schema", schema) != schema:
        raise ValueError(f"document says schema {document['schema']}, caller says {schema}")
    text = json.dumps(
        {**document, "schema": schema}, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False
    )
    write_atomic(path, text.encode("ascii") + b"\n", mode=mode, disk=disk)


def quarantine(path: Path, *, disk: Disk = SYSTEM_DISK) -> Path:
    """Move an unusable file aside as `<name>.corrupt-<utc>`, where it stays as evidence; returns the new path.

    Raises:
        StateWriteError: The rename failed; the file is where it was.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    try:
        for attempt in range(1000):
            target = path.with_name(f"{path.name}.corrupt-{stamp}" + (f"-{attempt}" if attempt else ""))
            if not disk.exists(target):
                disk.replace(path, target)
                disk.sync_directory(path.parent)
                return target
    except OSError as err:
        raise StateWriteError(f"{path}: cannot be moved aside ({err.strerror or err})") from err
    raise StateWriteError(
        f"{path}: cannot be moved aside, 1000 files named {path.name}.corrupt-{stamp} exist"
    )


class InstanceLock:
    """Held as long as the process lives; a second instance of the same component is refused.

    The kernel drops the lock when the process dies, so there is no stale lock. The file stays: removing it would
    let two processes hold locks on two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def __enter__(self) -> Self:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise StateError(
                f"{self._path}: the instance lock cannot be opened ({err.strerror or err})"
            ) from err
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            try:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            except OSError:
                holder = ""
            finally:
                os.close(fd)
            who = f"process {holder}" if holder.isdecimal() else "another process"
            raise SecondInstanceError(
                f"{self._path}: {who} holds this lock; this second instance ends"
            ) from err
        # Only for people: on a full disk the lock is as good, and the process that could make room has to start.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
