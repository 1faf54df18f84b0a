"""Patches as the release tool makes and applies them: right for any pair of images, small, and never believed."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.payload import STANDARD, Limits
from tidewaiter_release.apply import apply_patch
from tidewaiter_release.delta import make_patch
from tidewaiter_release.delta_regions import RegionIndex, sample_bits
from tidewaiter_release.errors import BuildMismatchError, InputError

from tests.sim.patches import BLOCK, CHUNK, TOY, changed, reader_of, toy_patch

MIB = 1024 * 1024


def text_like(size: int, *, seed: int) -> bytes:
    """Content that repeats itself here and there, as programs and documents do."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(4, 40)) for _ in range(4000)]
    out = bytearray()
    while len(out) < size:
        out += b"".join(rng.choices(words, k=200))
    return bytes(out[:size])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(2, 30))
def test_apply_gives_the_new_image_for_random_pairs(
    tmp_path_factory: pytest.TempPathFactory, seed: int, edits: int, blocks: int
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    old = random.Random(seed).randbytes(blocks * BLOCK * 4)
    new = changed(old, seed=seed + 1, edits=edits)
    toy_patch(old, new, folder, level=1)
    apply_patch(folder / "old", folder / "patch", folder / "made", limits=TOY)
    assert (folder / "made").read_bytes() == new


def test_images_that_end_inside_a_block_are_padded_as_the_builder_pads_them(tmp_path: Path) -> None:
    old, new = random.Random(1).randbytes(3 * CHUNK + 100), random.Random(2).randbytes(2 * CHUNK + 5)
    toy_patch(old, new, tmp_path)
    apply_patch(tmp_path / "old", tmp_path / "patch", tmp_path / "made", limits=TOY)
    assert (tmp_path / "made").read_bytes() == new.ljust(2 * CHUNK + BLOCK, b"\0")


def test_the_same_images_give_the_same_patch(tmp_path: Path) -> None:
    old = text_like(MIB, seed=1)
    new = changed(old, seed=2)
    assert toy_patch(old, new, tmp_path / "one").data == toy_patch(old, new, tmp_path / "two").data


def test_zstd_tool_decodes_every_segment_of_a_patch(tmp_path: Path) -> None:
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("the program zstd is missing; install the Debian package zstd")
    old = text_like(10 * MIB, seed=3)
    new = b"".join(old[at : at + 50_000] + bytes([at % 251]) for at in range(0, len(old), 50_000))
    patch = toy_patch(old, new + old[: 1 * MIB], tmp_path, limits=STANDARD)
    reader, padded = (
        reader_of(patch.head, limits=STANDARD),
        patch.new.ljust(patch.built.header.new_bytes, b"\0"),
    )
    segments = list(reader.segments())
    assert len(segments) > 2
    literals = bytearray()
    for segment in segments:
        regions = reader.regions(segment)
        (tmp_path / "prefix").write_bytes(
            b"".join(old[run.first * BLOCK : (run.first + run.regions) * BLOCK] for run in regions)
        )
        (tmp_path / "frame").write_bytes(patch.data[segment.offset : segment.offset + segment.stored_bytes])
        behind = [f"--patch-from={tmp_path / 'prefix'}"] if regions else []
        done = subprocess.run(
            [tool, "-d", "-c", *behind, str(tmp_path / "frame")], capture_output=True, check=True
        )
        assert len(done.stdout) == segment.literal_bytes
        literals += done.stdout
    assert bytes(literals[:BLOCK]) == padded[segments[0].first_block * BLOCK :][:BLOCK]
    blocks = {padded[at : at + BLOCK] for at in range(0, len(padded), BLOCK)}
    assert all(bytes(literals[at : at + BLOCK]) in blocks for at in range(0, len(literals), BLOCK))


def test_a_change_of_one_byte_costs_less_than_a_block(tmp_path: Path) -> None:
    old = random.Random(4).randbytes(4 * MIB) * 16
    new = bytearray(old)
    new[33 * MIB + 5] ^= 1
    patch = toy_patch(old, bytes(new), tmp_path, level=19, limits=STANDARD)
    assert patch.built.length < 1024
    apply_patch(tmp_path / "old", tmp_path / "patch", tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == new


def test_shifted_content_is_found_in_the_old_image(tmp_path: Path) -> None:
    old = random.Random(5).randbytes(6 * MIB)
    patch = toy_patch(old, b"x" + old[:-1], tmp_path, level=12, limits=STANDARD)
    assert patch.built.literal_bytes == 6 * MIB
    assert patch.built.length < 60_000


def test_every_single_flipped_bit_of_a_patch_is_refused_or_harmless(tmp_path: Path) -> None:
    old = random.Random(6).randbytes(4 * CHUNK)
    new = changed(old, seed=7)
    data = toy_patch(old, new, tmp_path).data
    rng = random.Random(8)
    refused = 0
    for place in [*range(0, 224, 3), *rng.sample(range(224, len(data)), 150)]:
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randrange(8)
        (tmp_path / "broken").write_bytes(broken)
        try:
            apply_patch(tmp_path / "old", tmp_path / "broken", tmp_path / "made", limits=TOY)
        except TidewaiterError:
            refused += 1
            assert not (tmp_path / "made").exists()
        else:  # new_sha256 is for other tools and is proven by nothing but the root
            assert (tmp_path / "made").read_bytes() == new
            (tmp_path / "made").unlink()
    assert refused > 150


def test_another_old_image_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    old = random.Random(9).randbytes(4 * CHUNK)
    toy_patch(old, changed(old, seed=1), tmp_path)
    (tmp_path / "other").write_bytes(old[:-1] + b"?")
    with pytest.raises(BuildMismatchError, match="root"):
        apply_patch(tmp_path / "other", tmp_path / "patch", tmp_path / "made", limits=TOY)
    assert not (tmp_path / "made").exists()


def test_images_of_unequal_chunks_have_no_patch(tmp_path: Path) -> None:
    limits = Limits(max_chunks=4)
    (tmp_path / "old").write_bytes(bytes(4 * CHUNK))
    (tmp_path / "new").write_bytes(bytes(5 * CHUNK))
    with pytest.raises(InputError, match="chunks"):
        make_patch(tmp_path / "old", tmp_path / "new", tmp_path / "patch", limits=limits)
    assert not (tmp_path / "patch").exists()


def test_a_missing_or_empty_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "some").write_bytes(bytes(CHUNK))
    for old, new in (("none", "some"), ("some", "empty")):
        with pytest.raises(TidewaiterError, match=r"none|empty"):
            make_patch(tmp_path / old, tmp_path / new, tmp_path / "patch")


def test_samples_get_rarer_above_4_gib() -> None:
    assert [sample_bits(size << 30) for size in (1, 4, 5, 8, 9, 256)] == [8, 8, 9, 9, 10, 14]


def nothing_known(regions: int) -> RegionIndex:
    """An old image of which no value is known: only guesses vote."""
    return RegionIndex(np.empty(0, np.uint64), np.empty(0, np.uint32), 8, regions)


def test_regions_with_few_votes_are_left_out() -> None:
    assert nothing_known(100).best(b"", [3, 30, 30, 60, 100], most=8, least=1.0) == (30,)


def test_narrow_gaps_between_chosen_regions_come_along_while_there_is_room() -> None:
    guesses = [3, 5, 5, 9, 9, 40]
    assert nothing_known(100).best(b"", guesses, most=4) == (3, 5, 9, 40)
    assert nothing_known(100).best(b"", guesses, most=5) == (3, 4, 5, 9, 40)
    assert nothing_known(100).best(b"", guesses, most=100) == (3, 4, 5, 6, 7, 8, 9, 40)


def test_the_rest_of_an_area_with_many_votes_comes_along_while_there_is_room() -> None:
    index = nothing_known(100)
    guesses = [32, 35, 39, 47, 80, 80, 81]
    assert index.best(b"", guesses, most=40, least=1.0, least_around=3.0) == (*range(32, 48), 80)
    assert index.best(b"", guesses, most=40, least=1.0, least_around=4.0) == (80,)
    assert index.best(b"", guesses, most=5, least=1.0, least_around=3.0) == (32, 33, 34, 35, 80)


def test_scattered_changes_of_one_byte_cost_little_more_than_the_changes(tmp_path: Path) -> None:
    """One block in 64 KiB: a prefix of 8 MiB, made of regions as large, would have what half of the blocks were."""
    old = random.Random(11).randbytes(16 * MIB)
    new = bytearray(old)
    for at in range(0, len(new), CHUNK):
        new[at + 9000] ^= 1
    patch = toy_patch(old, bytes(new), tmp_path, level=12, limits=STANDARD)
    assert patch.built.literal_bytes == MIB
    assert patch.built.segment_bytes < 8_000


_MEASURE = """
import sys
from pathlib import Path
from tidewaiter_release.cli import main
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
before = status("VmRSS:")
assert main(["apply", sys.argv[1], sys.argv[2], "-o", sys.argv[3]]) == 0
print(status("VmHWM:") - before)
"""


def test_apply_has_the_memory_bound_of_the_device(tmp_path: Path) -> None:
    old = text_like(8 * MIB, seed=10) * 4
    new = b"x" + old[:-1]
    toy_patch(old, new, tmp_path, level=1, limits=STANDARD)
    command = [sys.executable, "-c", _MEASURE, *(str(tmp_path / name) for name in ("old", "patch", "made"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert hashlib.sha256((tmp_path / "made").read_bytes()).digest() == hashlib.sha256(new).digest()
    grown_kib = int(done.stdout.splitlines()[-1])
    assert grown_kib < 36 * 1024, done.stdout
