"""The command line: exit status, what goes where, and the words a person reads."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tidewaiter_release.cli import main, run_command

IMAGE = bytes(1080) + b"\x53\xef" + bytes(range(256)) * 2048

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exited:
            status = int(exited.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.ext4"
    path.write_bytes(IMAGE)
    os.utime(path, (1_760_000_000, 1_760_000_000))
    return path


BUILD = ("--product", "injector", "--version", "1.1.0", "--sequence", "2", "--hw", "inj-a1")


def test_init_build_publish_refresh_and_lint_end_with_0(run: Run, image: Path, tmp_path: Path) -> None:
    where = ("--repo", tmp_path / "repo", "--keys", tmp_path / "keys")
    assert run("init", *where)[0] == 0
    status, out, _ = run("build", image, "--out", tmp_path / "build", *BUILD)
    assert status == 0 and out.startswith("injector 1.1.0 sequence 2 digest ")
    status, out, _ = run("publish", *where, tmp_path / "build")
    assert (status, out) == (0, "releases/injector/1.1.0/release.json\n")
    assert run("refresh", *where)[:2] == (0, "timestamp version 3\n")
    status, out, _ = run("lint", "--repo", tmp_path / "repo")
    assert status == 0 and out.endswith("0 errors, 0 warnings\n")


def test_every_build_option_reaches_the_release(run: Run, image: Path, tmp_path: Path) -> None:
    options = [*BUILD, "--hw", "inj-a2", "--security-epoch", "3", "--consent", "local", "--risk", "security"]
    options += ["--tries", "5", "--activation", "window", "--health-required", "hal,injector"]
    options += ["--health-deadline-s", "900", "--hold-s", "60", "--from-min", "1", "--from-max", "1"]
    options += [
        "--data-writes",
        "3",
        "--data-reads",
        "2-3",
        "--irreversible-data",
        "--max-fetch-bytes",
        "5000000",
    ]
    options += [
        "--note",
        "en=Faster = better\nSecond line",
        "--note",
        "pt-BR=Mais",
        "--built-utc",
        "2026-11-01T00:00:00Z",
    ]
    assert run("build", image, "--out", tmp_path / "out", *options)[0] == 0
    status, out, _ = run("inspect", tmp_path / "out/release.json")
    assert status == 0
    for words in (
        "sequence      2, security epoch 3",
        "built         2026-11-01T00:00:00Z",
        "hardware      inj-a1, inj-a2",
        "from          sequence 1..1",
        "at most 5000000",
        "consent local, risk security, activation window, 5 tries",
        "hal, injector, deadline 900 s, hold 60 s",
        "writes 3, reads 2..3, NOT reversible",
        "    Faster = better\n    Second line",
        "notes [pt-BR]",
    ):
        assert words in out


def test_the_build_time_is_the_images_own_or_source_date_epoch(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    run("build", image, "--out", tmp_path / "out", *BUILD)
    assert "built         2025-10-09T08:53:20Z" in run("inspect", tmp_path / "out/release.json")[1]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1750000000")
    run("build", image, "--out", tmp_path / "out", *BUILD)
    assert "built         2025-06-15T15:06:40Z" in run("inspect", tmp_path / "out/release.json")[1]


def test_inspect_prints_index_pack_and_metadata(run: Run, image: Path, tmp_path: Path) -> None:
    run("build", image, "--out", tmp_path / "out", *BUILD)
    run("init", "--repo", tmp_path / "repo", "--keys", tmp_path / "keys")
    assert "chunks        9 of 65536" in run("inspect", tmp_path / "out/index.twci")[1]
    assert "image_root" in run("inspect", tmp_path / "out/pack.twpk")[1]
    metadata = tmp_path / "repo/metadata"
    assert "root        3 of 5" in run("inspect", metadata / "1.root.json")[1]
    assert "delegates   os 2 of 3: releases/*/*/*" in run("inspect", metadata / "1.targets.json")[1]
    assert "snapshot    version 1" in run("inspect", metadata / "timestamp.json")[1]
    assert "os.json  version 1" in run("inspect", metadata / "1.snapshot.json")[1]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\x00\x01", b'{"signed":1}', b'{"signed":{"_type":"root"}}']
)
def test_inspect_refuses_what_it_does_not_know(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    status, out, err = run("inspect", tmp_path / "file")
    assert (status, out) == (1, "") and "[release-tool.input]" in err


def test_inspect_refuses_a_damaged_index_with_its_code(run: Run, image: Path, tmp_path: Path) -> None:
    run("build", image, "--out", tmp_path / "out", *BUILD)
    path = tmp_path / "out/index.twci"
    path.write_bytes(path.read_bytes()[:-1])
    assert run("inspect", path)[0] == 1
    assert "[payload.length]" in run("inspect", path)[2]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("lint", "--repo", "/nonexistent"), ""),
        (("refresh", "--repo", "/nonexistent", "--keys", "/nonexistent"), "[release-tool.repository]"),
        (
            ("publish", "--repo", "/nonexistent", "--keys", "/nonexistent", "/nonexistent"),
            "[release-tool.input]",
        ),
        (("inspect", "/nonexistent"), "[release-tool.input]"),
        (("build", "/nonexistent", "--out", "/nonexistent", *BUILD), "[release-tool.input]"),
    ],
)
def test_a_refusal_ends_with_1_and_a_code(run: Run, arguments: tuple[str, ...], code: str) -> None:
    status, out, err = run(*arguments)
    assert status == 1
    assert code in err and "Traceback" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("build", "image"),
        ("build", "image", "--out", "o", *BUILD, "--sequence", "x"),
        ("build", "image", "--out", "o", *BUILD, "--note", "no language"),
        ("build", "image", "--out", "o", *BUILD, "--built-utc", "yesterday"),
        ("build", "image", "--out", "o", *BUILD, "--data-reads", "a-b"),
        ("build", "image", "--out", "o", *BUILD, "--level", "23"),
        ("publish", "--repo", "r"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert err.startswith("usage: tidewaiter-release")


def test_a_spec_that_breaks_a_rule_is_refused_with_its_code(run: Run, image: Path, tmp_path: Path) -> None:
    status, _, err = run("build", image, "--out", tmp_path / "out", *BUILD, "--tries", "12")
    assert status == 1
    assert "policy.tries: expected an integer in 1..9, found 12" in err and "[release.schema]" in err


def test_an_output_directory_that_cannot_be_made_is_named(run: Run, image: Path) -> None:
    status, _, err = run("build", image, "--out", image / "below-a-file", *BUILD)
    assert status == 1
    assert "below-a-file: cannot be written to" in err


def test_delta_and_apply_never_replace_what_they_are_made_of(run: Run, tmp_path: Path) -> None:
    old, new, patch = tmp_path / "old", tmp_path / "new", tmp_path / "patch"
    old.write_bytes(IMAGE)
    new.write_bytes(IMAGE + IMAGE)
    assert run("delta", old, new, "-o", patch)[0] == 0
    for command in (
        ("delta", old, new, "-o", new),
        ("delta", old, new, "-o", old),
        ("apply", old, patch, "-o", old),
    ):
        status, _, err = run(*command)
        assert status == 1 and "choose another name [release-tool.input]" in err
    assert (old.read_bytes(), new.read_bytes()) == (IMAGE, IMAGE + IMAGE)


def test_a_folder_in_place_of_an_image_or_a_patch_is_called_a_folder(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    status, _, err = run("delta", image, tmp_path, "-o", tmp_path / "patch")
    assert status == 1 and f"{tmp_path}: expected an image, found a folder" in err
    status, _, err = run("delta", image, image, "-o", tmp_path)
    assert (
        status == 1
        and f"{tmp_path}: expected the name of a file, found a folder; there is no new patch" in err
    )


def test_a_folder_that_takes_no_file_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    status, _, err = run("delta", image, image, "-o", "/proc/patch")
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith("tidewaiter-release: /proc/patch: cannot be written: ")
    assert last.endswith("; there is no new patch [release-tool.input]") and ".tmp" not in last


def test_what_is_no_patch_is_named(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    status, _, err = run("apply", image, image, "-o", tmp_path / "new")
    assert status == 1 and err.startswith(f"tidewaiter-release: {image}: patch: starts with ")


def test_ctrl_c_ends_a_command_with_130_and_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(argparse.Namespace):
        command = "build"

        @staticmethod
        def run(_: argparse.Namespace) -> int:
            raise KeyboardInterrupt

    assert run_command(Interrupted()) == 130
    assert "build: interrupted; what was not finished is not used" in capsys.readouterr().err


def test_an_image_that_ends_inside_a_block_is_said_to_be_filled(run: Run, tmp_path: Path) -> None:
    old, new, patch = tmp_path / "old", tmp_path / "new", tmp_path / "patch"
    old.write_bytes(IMAGE[: 4096 * 100])
    new.write_bytes(IMAGE[: 4096 * 100 - 60])
    status, out, _ = run("delta", old, new, "-o", patch)
    assert status == 0
    assert f"{new} ends inside a block: apply makes it with 60 zero bytes behind it" in out
    assert run("apply", old, patch, "-o", tmp_path / "made")[0] == 0
    assert (tmp_path / "made").read_bytes() == new.read_bytes() + bytes(60)
    assert "ends inside a block" not in run("delta", new, old, "-o", patch)[1]
