"""Building a release: the same image gives the same bytes, and the bytes give the image back."""

from __future__ import annotations

import hashlib
import io
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import (
    IndexReader,
    Method,
    PackHeader,
    PayloadError,
    PayloadLimitError,
    Release,
    Unit,
    build_index,
)
from tidewaiter_release.build import BuildSpec, build, detect_fs
from tidewaiter_release.check import check_build
from tidewaiter_release.errors import BuildMismatchError, InputError
from tidewaiter_release.parts import read_chunk
from tidewaiter_release.payload import build_image
from tidewaiter_release.progress import Progress

CHUNK = 65_536
RNG = random.Random(7)
RAW, TEXT = RNG.randbytes(CHUNK), b"therapy " * (CHUNK // 8)
IMAGE = RAW + bytes(CHUNK) + TEXT + RAW + bytes(CHUNK) + TEXT + b"short" * 100


def spec(**changes: Any) -> BuildSpec:
    fields: dict[str, Any] = {
        "product": "contrast-injector",
        "version": "1.0",
        "sequence": 1,
        "hw": ("ci-300",),
        "built_utc": datetime(2026, 11, 1, tzinfo=UTC),
        "fs": "ext4",
    }
    return BuildSpec(**{**fields, **changes})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.ext4"
    path.write_bytes(IMAGE)
    return path


def restored(directory: Path) -> bytes:
    index, pack = (directory / "index.twci").read_bytes(), (directory / "pack.twpk").read_bytes()
    reader = IndexReader(lambda offset, length: index[offset : offset + length], len(index))
    chunks = [
        read_chunk(reader, lambda offset, length: pack[offset : offset + length], number)
        for number in range(reader.header.chunk_count)
    ]
    return b"".join(chunks)


def test_index_and_pack_give_the_image_padded_to_whole_blocks(image: Path, tmp_path: Path) -> None:
    build(image, tmp_path / "out", spec())
    assert restored(tmp_path / "out") == IMAGE + bytes(4096 - len(IMAGE) % 4096)


def test_each_chunk_is_stored_by_the_cheapest_method_and_only_once(image: Path, tmp_path: Path) -> None:
    build(image, tmp_path / "out", spec())
    index = (tmp_path / "out/index.twci").read_bytes()
    reader = IndexReader(lambda offset, length: index[offset : offset + length], len(index))
    methods = [reader.unit(number).method for number in range(7)]
    assert methods == [
        Method.RAW,
        Method.ZERO,
        Method.ZSTD,
        Method.SAME,
        Method.ZERO,
        Method.SAME,
        Method.ZSTD,
    ]
    assert (reader.unit(3).offset, reader.unit(5).offset) == (0, 2)


def test_a_chunk_that_saves_less_than_a_sixteenth_is_stored_raw(tmp_path: Path) -> None:
    rng = random.Random(3)
    noise = 62_000  # the rest is zeros: the frame saves about 5 %
    (tmp_path / "image").write_bytes(rng.randbytes(noise) + bytes(CHUNK - noise))
    built = build_image(tmp_path / "image", tmp_path)
    assert built.pack.length == 64 + CHUNK


def test_a_repeated_build_is_byte_equal_whatever_the_number_of_threads(image: Path, tmp_path: Path) -> None:
    build(image, tmp_path / "one", spec(), workers=1)
    build(image, tmp_path / "two", spec(), workers=5)
    for name in ("release.json", "index.twci", "pack.twpk", "build.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_build_into_a_used_directory_replaces_it(image: Path, tmp_path: Path) -> None:
    build(image, tmp_path / "out", spec())
    image.write_bytes(RAW)
    release = build(image, tmp_path / "out", spec(version="1.1", sequence=2))
    assert check_build(tmp_path / "out")[1] == release
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "build.json",
        "index.twci",
        "pack.twpk",
        "release.json",
    ]


def test_the_release_names_the_files_that_were_written(image: Path, tmp_path: Path) -> None:
    release = build(image, tmp_path / "out", spec())
    for name, part in (("index.twci", release.slot.index), ("pack.twpk", release.slot.pack)):
        data = (tmp_path / "out" / name).read_bytes()
        assert (part.length, part.sha256) == (len(data), Sha256.of(data))
    header = PackHeader.parse((tmp_path / "out/pack.twpk").read_bytes()[:64])
    assert header.image_root == release.slot.image_root
    assert Release.parse((tmp_path / "out/release.json").read_bytes()) == release


def test_the_fetch_limit_leaves_room_for_index_and_pack(image: Path, tmp_path: Path) -> None:
    release = build(image, tmp_path / "out", spec())
    assert release.policy.max_fetch_bytes >= (release.slot.index.length + release.slot.pack.length) * 1.05


def test_a_spec_that_breaks_a_rule_is_refused_before_anything_is_written(image: Path, tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="tries"):
        build(image, tmp_path / "out", spec(tries=10))
    assert not (tmp_path / "out").exists()


def test_an_empty_image_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(PayloadLimitError, match="empty: image_bytes = 0"):
        build(tmp_path / "empty", tmp_path / "out", spec())
    assert not (tmp_path / "out").exists()


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        build(tmp_path / "nowhere", tmp_path / "out", spec(fs=None))


def test_the_file_system_is_read_from_the_superblock(tmp_path: Path) -> None:
    for name, offset, magic in (
        ("ext4", 1080, b"\x53\xef"),
        ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
        ("squashfs", 0, b"hsqs"),
    ):
        path = tmp_path / name
        path.write_bytes(bytes(offset) + magic + bytes(4096))
        assert detect_fs(path) == name
    (tmp_path / "text").write_bytes(b"hello")
    with pytest.raises(InputError, match="--fs"):
        detect_fs(tmp_path / "text")


@pytest.mark.parametrize("name", ["index.twci", "pack.twpk"])
def test_a_build_with_a_flipped_byte_is_refused(image: Path, tmp_path: Path, name: str) -> None:
    build(image, tmp_path / "out", spec())
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BuildMismatchError, match=name):
        check_build(tmp_path / "out")


def test_a_build_with_a_missing_or_shorter_file_is_refused(image: Path, tmp_path: Path) -> None:
    build(image, tmp_path / "out", spec())
    os.truncate(tmp_path / "out/pack.twpk", 100)
    with pytest.raises(BuildMismatchError, match="100 bytes"):
        check_build(tmp_path / "out")
    (tmp_path / "out/release.json").unlink()
    with pytest.raises(InputError, match="no finished build"):
        check_build(tmp_path / "out")


def test_an_index_reaches_units_above_4_gib_of_a_pack() -> None:
    count = 4 * 1024**3 // CHUNK + 8
    digest = hashlib.sha256(RAW).digest()
    index = build_index(
        image_bytes=count * CHUNK,
        image_sha256=bytes(32),
        chunk_hashes=[digest] * count,
        units=[Unit(64 + number * CHUNK, CHUNK, Method.RAW, digest) for number in range(count)],
        pack_bytes=64 + count * CHUNK,
    )
    reader = IndexReader(lambda offset, length: index[offset : offset + length], len(index))
    asked: list[tuple[int, int]] = []

    def read_pack(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return RAW

    assert read_chunk(reader, read_pack, count - 1) == RAW
    assert asked == [(64 + (count - 1) * CHUNK, CHUNK)] and asked[0][0] > 2**32


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log() -> None:
    now = iter(range(0, 1000, 2))
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        progress = Progress("building", 10 * 2**20, stream=stream, now=lambda: float(next(now)))
        for done in range(0, 10 * 2**20 + 1, 2**20):
            progress.update(done)
        progress.finish()
    assert (
        "\r" in terminal.getvalue() and "[###" in terminal.getvalue() and terminal.getvalue().endswith("s\n")
    )
    assert "\r" not in log.getvalue()
    assert log.getvalue().splitlines()[0] == "building: 10 % of 10.0 MiB"


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_progress_never_fills_the_line_of_a_terminal(columns: int) -> None:
    now = iter(range(0, 1000, 2))
    terminal = Terminal()
    label = "comparing core-image-injector-1.0.ext4 and core-image-injector-1.1.ext4"
    progress = Progress(
        label, 600 * 2**20, stream=terminal, now=lambda: float(next(now)), columns=lambda: columns
    )
    for done in range(0, 600 * 2**20 + 1, 60 * 2**20):
        progress.update(done)
    progress.finish()
    frames = terminal.getvalue().rstrip("\n").split("\r")
    assert len(frames) > 5 and max(map(len, frames)) < columns
    assert frames[-1].rstrip() and "#" in frames[-1]


def test_a_shorter_progress_line_covers_a_longer_one() -> None:
    now = iter(range(0, 1000, 2))
    terminal = Terminal()
    progress = Progress("x", 2**20, stream=terminal, now=lambda: float(next(now)), columns=lambda: 120)
    progress.update(2**19)
    progress.finish()
    _, first, last = terminal.getvalue().rstrip("\n").split("\r")
    assert len(last) >= len(first)
