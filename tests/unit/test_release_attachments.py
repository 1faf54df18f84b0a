"""What a build carries beside the image: kernel images, injector firmware, bill of materials, verity, rollout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload import PayloadChunkError, Release
from tidewaiter_core.payload.components import UKI_PIECE_BYTES, uki_pieces
from tidewaiter_release.attachments import Firmware
from tidewaiter_release.check import check_build
from tidewaiter_release.cli import main
from tidewaiter_release.errors import BuildMismatchError, InputError, PublishedError
from tidewaiter_release.mcuboot import read_mcuboot
from tidewaiter_release.repository import lint

from tests.sim.mcuboot import mcuboot_image
from tests.sim.repository import TestRepository
from tests.sim.tuf_client import TufDevice

IMAGE = bytes(1080) + b"\x53\xef" + bytes(range(256)) * 2048
BUILD = ["--product", "injector", "--version", "1.1.0", "--sequence", "2", "--hw", "inj-a1"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.ext4"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "head.bin").write_bytes(mcuboot_image(b"firmware" * 100))
    (tmp_path / "a.efi").write_bytes(b"MZ kernel a")
    (tmp_path / "b.efi").write_bytes(b"MZ kernel b, which is longer")
    (tmp_path / "sbom.spdx.json").write_text("{}")
    return tmp_path


def run_build(image: Path, out: Path, *options: str) -> int:
    return main(
        ["build", str(image), "--out", str(out), *BUILD, "--built-utc", "2026-11-01T00:00:00Z", *options]
    )


def everything(files: Path) -> list[str]:
    options = ["--firmware", f"head={files / 'head.bin'}@1.2.3", "--sbom", str(files / "sbom.spdx.json")]
    options += ["--uki", f"A={files / 'a.efi'}", "--uki", f"B={files / 'b.efi'}", "--rollout", "12.5"]
    options += ["--verity", f"{'ab' * 32}:{'0f' * 16}:4096:8192", "--firmware-compat", "door=1.0.0..1.9.9"]
    return [*options, "--field", 'x_ticket={"id":[1,2]}', "--rollout-not-before", "2026-12-01T00:00:00Z"]


def test_everything_that_release_json_has_comes_out_of_the_options(
    image: Path, files: Path, tmp_path: Path
) -> None:
    assert run_build(image, tmp_path / "out", *everything(files)) == 0
    data = (tmp_path / "out/release.json").read_bytes()
    release, document = Release.parse(data), json.loads(data)
    head = release.firmware[0]
    assert (head.board, head.version, head.image_path) == ("head", "1.2.3", "usr/lib/firmware/head.bin")
    assert head.path == "firmware/head/1.2.3/firmware-head-1.2.3.bin"
    assert "1.2.3" in release.firmware_compat["head"] and "1.2.4" not in release.firmware_compat["head"]
    assert "1.5.0" in release.firmware_compat["door"]
    verity = release.slot.verity
    assert verity is not None and (verity.root_hash, verity.data_bytes) == ("ab" * 32, 4096)
    assert release.rollout is not None and release.rollout.percent_x100 == 1250
    assert f"{release.rollout.not_before_utc:%Y-%m}" == "2026-12"
    assert release.sbom is not None and release.sbom.path == "releases/injector/1.1.0/sbom.json"
    assert document["x_ticket"] == {"id": [1, 2]}
    slots = {part["slot"] for part in document["components"] if part["kind"] == "uki"}
    assert slots == {"A", "B"}


def test_a_build_with_everything_is_byte_equal_on_repetition(
    image: Path, files: Path, tmp_path: Path
) -> None:
    built = []
    for name, jobs in (("one", "1"), ("many", "7")):
        assert run_build(image, tmp_path / name, *everything(files), "--jobs", jobs) == 0
        built.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert built[0] == built[1] and len(built[0]) == 8
    record = json.loads(built[0]["build.json"])
    assert record["tool"].startswith("tidewaiter-release ") and record["zstd"]


def test_an_earlier_build_leaves_nothing_in_the_directory(image: Path, files: Path, tmp_path: Path) -> None:
    run_build(image, tmp_path / "out", *everything(files))
    run_build(image, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "release.json",
        "build.json",
        "index.twci",
        "pack.twpk",
    }


def test_a_kernel_image_is_named_with_its_pieces_and_a_wrong_one_is_found_before_anybody_signs(
    image: Path, files: Path, tmp_path: Path
) -> None:
    kernel = bytes(2 * UKI_PIECE_BYTES) + b"end"
    (files / "a.efi").write_bytes(kernel)
    run_build(image, tmp_path / "out", *everything(files))
    document = json.loads((tmp_path / "out/release.json").read_text())
    part = next(one for one in document["components"] if one.get("slot") == "A")
    assert part["pieces"] == [piece.sha256 for piece in uki_pieces(kernel)]
    part["pieces"][1] = "0" * 64
    (tmp_path / "out/release.json").write_text(json.dumps(document))
    with pytest.raises(PayloadChunkError, match="piece at 1048576"):
        check_build(tmp_path / "out")


@pytest.mark.parametrize("name", ["kernel-a.efi", "firmware-head-1.2.3.bin", "sbom.json"])
def test_a_damaged_attachment_is_found_before_anybody_signs(
    image: Path, files: Path, tmp_path: Path, name: str
) -> None:
    run_build(image, tmp_path / "out", *everything(files))
    (tmp_path / "out" / name).write_bytes(b"x")
    with pytest.raises(BuildMismatchError, match=name):
        check_build(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--firmware", "head={}/head.bin@9.9.9"], "is version 1.2.3, expected 9.9.9"),
        (["--firmware", "head={}/a.efi"], "no MCUboot image"),
        (["--firmware", "head={}/missing"], "cannot be read"),
        (["--firmware", "HEAD={}/head.bin"], "board"),
        (["--firmware-path", "head=usr/x"], "there is no --firmware for this board"),
        (
            ["--firmware", "head={}/head.bin", "--firmware", "head={}/head.bin"],
            "two components give firmware",
        ),
        (["--rollout-salt", "0" * 32], "say the share with --rollout"),
        (["--verity", f"{'ab' * 32}:-:4096:99999999999"], "hash_offset"),
        (["--sbom", "{}/missing.json"], "cannot be read"),
        (["--field", "x_deep=[[[[[[[[[1]]]]]]]]]"], "deep"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_no_release(
    image: Path,
    files: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_build(image, tmp_path / "out", *(option.replace("{}", str(files)) for option in options)) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out/release.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--rollout", "101"],
        ["--rollout", "1.234"],
        ["--rollout-salt", "xy"],
        ["--verity", "ab:cd"],
        ["--field", "ticket=1"],
        ["--field", "x_a={"],
        ["--firmware", "head"],
        ["--firmware-compat", "head=1.0.0"],
        ["--uki", "C=file"],
    ],
)
def test_an_option_of_the_wrong_form_is_wrong_usage(image: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        run_build(image, tmp_path / "out", *options)
    assert exited.value.code == 2


# -- MCUboot ----------------------------------------------------------------------------------------------------------


def test_version_and_hash_are_those_of_the_image() -> None:
    data = mcuboot_image(b"payload", version=(2, 0, 17, 42))
    found = read_mcuboot(data, what="x")
    assert found.version == "2.0.17+42"
    assert found.hash == hashlib.sha256(data[: 32 + len(b"payload")]).hexdigest()
    assert found.hash != hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("cut", [0, 10, 32, 36, 40, 44, 60, 78])
def test_a_truncated_image_is_refused(cut: int) -> None:
    with pytest.raises(InputError):
        read_mcuboot(mcuboot_image(b"payload")[:cut], what="x")


def test_every_flipped_bit_that_the_boot_loader_would_see_is_refused() -> None:
    data = mcuboot_image(b"payload")
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(InputError):
                read_mcuboot(bytes(changed), what="x")


# -- firmware in the repository ---------------------------------------------------------------------------------------


def firmware(
    directory: Path, payload: bytes = b"x", version: tuple[int, int, int, int] = (1, 0, 0, 0)
) -> Any:
    file = directory / "fw.bin"
    file.write_bytes(mcuboot_image(payload, version=version))
    return (Firmware(board="head", file=file, image_path="usr/lib/firmware/fw.bin"),)


def test_firmware_is_signed_by_its_own_role_and_shared_between_releases(tmp_path: Path) -> None:
    world = TestRepository(tmp_path / "world")
    first = world.add_release(IMAGE, "1.0", 1, firmware=firmware(tmp_path))
    world.add_release(IMAGE + b"x", "1.1", 2, firmware=firmware(tmp_path))
    state = world.store.load()
    path = first.release.firmware[0].path
    assert path in state.delegated["injector-firmware"].signed.targets
    assert path not in state.delegated["os"].signed.targets
    assert state.delegated["injector-firmware"].signed.version == 2
    device = TufDevice(tmp_path / "device", repository=world.repo, root=world.trusted_root)
    assert device.fetch(path) == (tmp_path / "fw.bin").read_bytes()
    assert lint(world.store, clock=world.clock) == []


def test_a_firmware_version_is_never_published_with_other_bytes(tmp_path: Path) -> None:
    world = TestRepository(tmp_path / "world")
    world.add_release(IMAGE, "1.0", 1, firmware=firmware(tmp_path))
    made = world.make_release(IMAGE + b"x", "1.1", 2, firmware=firmware(tmp_path, b"other"))
    with pytest.raises(PublishedError, match="is published with other content"):
        world.publish(made)


def test_a_release_with_a_kernel_image_counts_it_in_the_fetch_limit(tmp_path: Path) -> None:
    world = TestRepository(tmp_path / "world")
    kernel = tmp_path / "kernel.efi"
    kernel.write_bytes(bytes(3 * 2**20))
    plain = world.make_release(IMAGE, "1.0", 1).release
    both = world.make_release(IMAGE, "1.1", 1, ukis={SlotName("A"): kernel, SlotName("B"): kernel}).release
    assert both.policy.max_fetch_bytes - plain.policy.max_fetch_bytes >= 3 * 2**20
    assert both.policy.max_fetch_bytes - plain.policy.max_fetch_bytes < 4 * 2**20
