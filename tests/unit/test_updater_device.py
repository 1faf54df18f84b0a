"""Opening a slot: what is refused before anything is written. Files here; the same path opens block devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_updater.device import (
    BLOCK_BYTES,
    SlotDevice,
    aligned_buffer,
    label_in_name,
    open_medium,
)
from tidewaiter_updater.errors import SlotError

from tests.sim.image import ImageSpec, build_image
from tests.sim.loop import loop_device

SIZE = 64 * BLOCK_BYTES


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    path = tmp_path / "slot-b"
    path.write_bytes(b"\xa5" * SIZE)
    return path


def code(path: Path, **more: object) -> str:
    with pytest.raises(SlotError) as caught:
        SlotDevice.open(path, **more).close()  # type: ignore[arg-type]
    return caught.value.code


def test_the_booted_slot_is_refused_under_any_name(slot: Path, tmp_path: Path) -> None:
    link = tmp_path / "by-label"
    link.symlink_to(slot)
    assert code(slot, booted=slot) == "slot.booted"
    assert code(link, booted=slot) == "slot.booted"


def test_a_slot_that_another_process_writes_is_busy(slot: Path) -> None:
    with SlotDevice.open(slot):
        assert code(slot) == "slot.busy"


def test_a_slot_smaller_than_the_image_is_refused_and_closed(slot: Path) -> None:
    assert code(slot, image_bytes=SIZE + 1) == "slot.size"
    SlotDevice.open(slot, image_bytes=SIZE).close()


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo])
def test_what_is_no_storage_is_refused(tmp_path: Path, make: object) -> None:
    path = tmp_path / "thing"
    make(path)  # type: ignore[operator]
    assert code(path) in ("slot.io", "slot.label")


def test_a_partition_label_that_is_not_there_is_refused(slot: Path) -> None:
    assert code(slot, label="rootfs-b") == "slot.label"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/dev/disk/by-partlabel/root-b", "root-b"),
        (r"/dev/disk/by-partlabel/root\x20b", "root b"),
        (r"/dev/disk/by-partlabel/r\xc3\xb6t", "röt"),
        ("/dev/mapper/root-b", None),
        ("/dev/disk/by-partuuid/root-b", None),
    ],
)
def test_a_path_by_partition_label_says_which_label_is_right(path: str, label: str | None) -> None:
    assert label_in_name(Path(path)) == label


def test_what_is_written_is_there_after_reopening(slot: Path) -> None:
    buffer = aligned_buffer(4 * BLOCK_BYTES)
    buffer[:] = b"\x11" * len(buffer)
    device = SlotDevice.open(slot)
    device.write(memoryview(buffer), 8 * BLOCK_BYTES)
    with device.reopened() as reader:
        back = aligned_buffer(6 * BLOCK_BYTES)
        reader.read_into(memoryview(back), 7 * BLOCK_BYTES)
    assert bytes(back) == b"\xa5" * BLOCK_BYTES + b"\x11" * 4 * BLOCK_BYTES + b"\xa5" * BLOCK_BYTES
    assert slot.stat().st_size == SIZE


def test_a_path_that_leads_elsewhere_meanwhile_proves_nothing(slot: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(slot.read_bytes())
    with SlotDevice.open(slot) as device:
        other.replace(slot)
        with pytest.raises(SlotError, match="another device than a moment ago") as caught:
            device.reopened()
    assert caught.value.code == "slot.io"


def test_a_slot_opened_for_reading_cannot_be_written(slot: Path) -> None:
    buffer = aligned_buffer(BLOCK_BYTES)
    with SlotDevice.open(slot, writable=False) as device, pytest.raises(SlotError):
        device.write(memoryview(buffer), 0)
    assert slot.read_bytes() == b"\xa5" * SIZE


def test_reading_past_the_end_is_an_error_not_zeros(slot: Path) -> None:
    with SlotDevice.open(slot) as device, pytest.raises(SlotError, match="no progress"):
        device.read_into(memoryview(aligned_buffer(2 * BLOCK_BYTES)), SIZE - BLOCK_BYTES)


@pytest.fixture(params=[512, 4096])
def loop(slot: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with loop_device(slot, "--sector-size", str(request.param)) as device:
        yield device


@pytest.mark.privileged
def test_a_block_device_is_written_directly_and_zeroed_by_its_own_means(loop: Path) -> None:
    buffer = aligned_buffer(BLOCK_BYTES)
    buffer[:] = b"\x22" * BLOCK_BYTES
    with SlotDevice.open(loop, image_bytes=SIZE) as device:
        assert (device.size_bytes, device.zeroes_ranges) == (SIZE, True)
        device.write(memoryview(buffer), 0)
        device.zero(BLOCK_BYTES, 2 * BLOCK_BYTES)
        back = aligned_buffer(4 * BLOCK_BYTES)
        with device.reopened() as reader:
            reader.read_into(memoryview(back), 0)
    assert bytes(back) == b"\x22" * BLOCK_BYTES + bytes(2 * BLOCK_BYTES) + b"\xa5" * BLOCK_BYTES


@pytest.mark.privileged
def test_mounted_slot_is_busy(tmp_path: Path) -> None:
    image = build_image(
        ImageSpec(version="1", sequence=1, image_bytes=8 << 20), tmp_path / "i", work=tmp_path / "w"
    )
    point = tmp_path / "mounted"
    point.mkdir()
    with loop_device(image) as device:
        mounted = subprocess.run(
            ["mount", "-o", "ro", str(device), str(point)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"needs root that may mount: {mounted.stderr.strip()}")
        try:
            assert code(device) == "slot.busy"
        finally:
            subprocess.run(["umount", str(point)], check=True)
        SlotDevice.open(device).close()


@pytest.mark.privileged
def test_a_block_device_held_by_another_opener_is_busy(loop: Path) -> None:
    with SlotDevice.open(loop):
        assert code(loop) == "slot.busy"


@pytest.mark.privileged
def test_a_read_only_block_device_is_refused(slot: Path) -> None:
    with loop_device(slot, "--read-only") as device:
        assert code(device) == "slot.read-only"


@pytest.mark.privileged
def test_read_back_of_a_block_device_sees_the_medium_not_the_cache(loop: Path, slot: Path) -> None:
    back = aligned_buffer(BLOCK_BYTES)
    medium = open_medium(loop, writable=True)
    medium.read(memoryview(back), 0)
    with slot.open("r+b") as behind:
        behind.write(b"\x33" * BLOCK_BYTES)
    reader = medium.reopen()
    reader.read(memoryview(back), 0)
    reader.close()
    assert bytes(back) == b"\x33" * BLOCK_BYTES
