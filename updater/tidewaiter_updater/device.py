"""A slot as bytes on a medium: opened so that nobody else can write it, read and written past the page cache.

Two layers: `medium.Medium` is what the operating system offers (a write may be short, a sync may fail); `SlotDevice` adds the
loops, the bounds and the errors, and is all the rest of the updater sees. A test world is another `Medium`.

Source: update-engine.md section 7.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.medium import (
    BLOCK_BYTES,
    SYSTEM_MEDIA,
    Media,
    Medium,
    aligned_buffer,
    identity,
    open_medium,
)

__all__ = [
    "BLOCK_BYTES",
    "SYSTEM_MEDIA",
    "Media",
    "Medium",
    "SlotDevice",
    "aligned_buffer",
    "identity",
    "label_in_name",
    "open_medium",
]


class SlotDevice:
    """A slot: whole reads, whole writes, syncs; every refusal of the medium is a SlotError."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        image_bytes: int = 0,
        booted: Path | None = None,
        label: str | None = None,
        writable: bool = True,
        media: Media = SYSTEM_MEDIA,
    ) -> SlotDevice:
        """Open `path`, refusing before anything is written whatever must not be written.

        Args:
            image_bytes: What must fit.
            booted: The booted slot. A mapped device over it, or one that it maps itself, is the booted slot too.
            label: Partition label the device must have; None where there is no partition table. Labels are not unique: if the
                booted slot is on a disk, the device must be on the same one, else a stick with our labels would be written,
                proven, and the unproven partition of the same name started.

        Raises:
            SlotError: slot.booted, .label, .size, .busy, .read-only or .io.
        """
        if booted is not None and _leads_to(path, booted, media):
            raise SlotError(f"{path}: this is the booted slot; it is never written", code="slot.booted")
        if label is not None and (found := media.label(path)) != label:
            raise SlotError(
                f"{path}: expected partition label {label!r}, found {found!r}; not written", code="slot.label"
            )
        if label is not None and booted is not None:
            disks, running = media.disks(path), media.disks(booted)
            if running and not disks & running:
                raise SlotError(
                    f"{path}: expected partition {label!r} on the disk of the booted slot ({', '.join(sorted(running))}), "
                    f"found it on {', '.join(sorted(disks)) or 'none'}; not written",
                    code="slot.label",
                )
        checked = media.identity(path)
        device = cls(media.open(path, writable=writable))
        if media.identity(path) != checked:
            device.close()
            raise SlotError(
                f"{path}: leads to another device than was checked; not written",
                code="slot.io",
                retryable=True,
            )
        if device.size_bytes < image_bytes:
            size = device.size_bytes
            device.close()
            raise SlotError(
                f"{path}: the slot has {size} bytes, the image needs {image_bytes}; not written",
                code="slot.size",
            )
        return device

    @property
    def name(self) -> str:
        return self._medium.name

    @property
    def size_bytes(self) -> int:
        return self._medium.size_bytes

    @property
    def zeroes_ranges(self) -> bool:
        return self._medium.zeroes_ranges

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`."""
        done = 0
        while done < len(buffer):
            try:
                count = self._medium.read(buffer[done:], offset + done)
            except OSError as err:
                self._fail("read", offset + done, err)
            if count <= 0:
                self._fail("read", offset + done, None)
            done += count

    def write(self, buffer: memoryview, offset: int) -> None:
        """Write all of `buffer`; a short write is continued, one without progress is an error."""
        done = 0
        while done < len(buffer):
            try:
                count = self._medium.write(buffer[done:], offset + done)
            except OSError as err:
                self._fail("write", offset + done, err)
            # O_DIRECT wants whole sectors: the rest of a torn one is written again together with its beginning.
            count -= count % BLOCK_BYTES if count < len(buffer) - done else 0
            if count <= 0:
                self._fail("write", offset + done, None)
            done += count

    def zero(self, offset: int, length: int) -> None:
        try:
            self._medium.zero(offset, length)
        except OSError as err:
            self._fail("zeroing", offset, err)

    def sync(self) -> None:
        try:
            self._medium.sync()
        except OSError as err:
            self._fail("sync", 0, err)

    def reopened(self) -> SlotDevice:
        """This slot, synced, closed and opened again for reading only. The old object is closed."""
        try:
            return SlotDevice(self._medium.reopen())
        except OSError as err:
            self._fail("sync", 0, err)

    def close(self) -> None:
        self._medium.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fail(self, what: str, offset: int, err: OSError | None) -> NoReturn:
        finding = (err.strerror or str(err)) if err else "no progress"
        raise SlotError(
            f"{self.name}: {what} at byte {offset} failed: {finding}; the slot stays unbootable, a new attempt continues",
            code="slot.io",
            retryable=True,
        ) from err


def label_in_name(path: Path) -> str | None:
    """The partition label that a path promises: the name in a folder `by-partlabel`, as udev writes it; None for any other path.

    udev makes such links from what it reads; a stale one, or one of another disk with the same label, leads elsewhere.
    """
    if path.parent.name != "by-partlabel":
        return None
    plain = re.sub(
        rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode("ascii")), path.name.encode()
    )
    return plain.decode("utf-8", "replace")


def _leads_to(path: Path, booted: Path, media: Media) -> bool:
    """Whether writing one of them writes the other: the same storage, or one mapped from the other.

    Two devices with something below them in common are not meant: so are two logical volumes of one disk.
    """
    return media.identity(path) in media.stack(booted) or media.identity(booted) in media.stack(path)
