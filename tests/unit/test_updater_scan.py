"""Hashing a device with several threads: the order, the gaps, and that nothing is left behind."""

from __future__ import annotations

import hashlib
import threading

import pytest
from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import InstallCancelledError
from tidewaiter_updater.scan import READERS, WINDOW_BYTES, chunk_digests
from tidewaiter_updater.stage import Control

from tests.sim.disk import BLOCK_BYTES, FaultyDisk
from tests.sim.packs import CHUNK_BYTES, random_image

WINDOWS = 2 * READERS + 3
CHUNKS = WINDOWS * (WINDOW_BYTES // CHUNK_BYTES) - 5  # the last window is short


def scanned(disk: FaultyDisk, image_bytes: int, control: Control | None = None) -> list[bytes | None]:
    digests = chunk_digests(
        SlotDevice(disk), image_bytes=image_bytes, chunk_bytes=CHUNK_BYTES, control=control or Control()
    )
    found = list(digests)
    assert [chunk for chunk, _ in found] == list(range(len(found)))
    return [digest for _, digest in found]


def scanning_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("slot-scan")]


def test_every_chunk_is_hashed_in_order_and_the_last_one_unpadded() -> None:
    image = random_image(CHUNKS, seed=3)[:-BLOCK_BYTES]
    disk = FaultyDisk(len(image) + 4 * BLOCK_BYTES, content=image)
    expected = [
        hashlib.sha256(image[at : at + CHUNK_BYTES]).digest() for at in range(0, len(image), CHUNK_BYTES)
    ]
    assert scanned(disk, len(image)) == expected


def test_an_unreadable_window_gives_no_digest_and_the_others_are_still_read() -> None:
    image = random_image(CHUNKS, seed=3)
    disk = FaultyDisk(len(image), content=image)
    disk.faults.read_errors[WINDOW_BYTES // BLOCK_BYTES] = 5
    digests = scanned(disk, len(image))
    chunks = WINDOW_BYTES // CHUNK_BYTES
    assert digests[chunks : 2 * chunks] == [None] * chunks
    assert None not in digests[:chunks] + digests[2 * chunks :]


def test_an_image_smaller_than_a_window_is_read_once() -> None:
    disk = FaultyDisk(4 * BLOCK_BYTES, content=b"\1" * 4 * BLOCK_BYTES)
    assert scanned(disk, 4 * BLOCK_BYTES) == [hashlib.sha256(b"\1" * 4 * BLOCK_BYTES).digest()]
    assert len(disk.reads) == 1


def test_whoever_stops_early_leaves_no_thread_and_reads_only_a_little_ahead() -> None:
    image = random_image(CHUNKS, seed=3)
    disk = FaultyDisk(len(image), content=image)
    digests = chunk_digests(
        SlotDevice(disk), image_bytes=len(image), chunk_bytes=CHUNK_BYTES, control=Control()
    )
    next(digests)
    digests.close()
    assert scanning_threads() == []
    assert len(disk.reads) <= 2 * READERS + 1


def test_a_cancelled_scan_ends_with_its_threads() -> None:
    image = random_image(CHUNKS, seed=3)
    with pytest.raises(InstallCancelledError):
        scanned(FaultyDisk(len(image), content=image), len(image), Control(cancelled=lambda: True))
    assert scanning_threads() == []
