"""The commands stage, sign, publish and key as a person types them: what is asked, what is refused, and with which status."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_release.cli import main
from tidewaiter_release.repository import edits
from tidewaiter_release.repository.request import read_request
from tidewaiter_release.repository.sign import signature_files
from tidewaiter_release.repository.signing import Calendar
from tidewaiter_release.repository.stage import stage

from tests.sim.repository import TestRepository

RUN = "import sys; from tidewaiter_release.cli import main; sys.exit(main())"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TestRepository:
    return TestRepository(tmp_path_factory.mktemp("sign") / "world")


@pytest.fixture
def folder(world: TestRepository, tmp_path: Path) -> Path:
    stage(world.store, tmp_path / "request", edits.renew(["os"]), calendar=Calendar(clock=SystemClock()))
    return tmp_path / "request"


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


def on_a_terminal(answer: str, *arguments: str | Path) -> tuple[int, str]:
    """Run the tool where somebody types; `answer` goes in after the first question."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, close_fds=True)
    os.close(follower)
    seen = b""
    answered = False
    while select.select([leader], [], [], 30)[0]:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        seen += piece
        if not answered and seen.rstrip().endswith(b":"):
            os.write(leader, answer.encode() + b"\n")
            answered = True
    os.close(leader)
    return process.wait(30), seen.decode()


def test_sign_shows_the_change_and_asks_for_the_digits_of_the_request(
    world: TestRepository, folder: Path
) -> None:
    key = world.keys / "os-1.pem"
    status, seen = on_a_terminal("00000000", "sign", folder, "--key", key)
    assert status == 1 and "not confirmed; nothing was signed" in seen and signature_files(folder) == []
    digits = read_request(folder).digest[:8]
    status, seen = on_a_terminal(f"{digits[:4]} {digits[4:]}", "sign", folder, "--key", key)
    assert status == 0 and "os version 2 (now 1)" in seen and "signed os-2 by os-1" in seen
    assert len(signature_files(folder)) == 1


def test_without_a_person_sign_needs_a_yes(run: Run, world: TestRepository, folder: Path) -> None:
    status, _, err = run("sign", folder, "--key", world.keys / "os-1.pem")
    assert (status, signature_files(folder)) == (1, []) and "nobody is there to confirm" in err


def test_a_folder_of_keys_signs_with_those_that_are_asked_for(
    run: Run, world: TestRepository, folder: Path, tmp_path: Path
) -> None:
    status, out, _ = run("sign", folder, "--keys", world.keys, "--yes")
    assert status == 0 and out.count("signed os-2 by") == 3 and "targets" not in out
    (tmp_path / "empty").mkdir()
    assert (
        "holds no key that this request asks for"
        in run("sign", folder, "--keys", tmp_path / "empty", "--yes")[2]
    )


def test_signatures_can_be_written_elsewhere_and_brought_as_files(
    run: Run, world: TestRepository, folder: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        for role in ("os", "media-snapshot", "media-timestamp"):
            key = world.keys / f"{role}-{number}.pem"
            assert run("sign", folder, "--key", key, "--out", tmp_path / "sigs", "--yes")[0] == 0
    assert signature_files(folder) == []
    where = ("--repo", world.repo, "--keys", world.keys, "--request", folder)
    brought = [word for path in sorted((tmp_path / "sigs").iterdir()) for word in ("--signatures", path)]
    status, _, err = run("publish", *where, *brought[:-2])
    assert status == 1 and "has to sign" in err and "[release-tool.threshold]" in err
    status, out, _ = run("publish", *where, *brought)
    assert status == 0 and "published os-2" in out
    assert "nothing to do" in run("publish", *where, *brought)[2]


def test_a_key_is_made_with_a_passphrase_from_a_file_and_never_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    secret = ("--passphrase-file", tmp_path / "pass")
    assert run("key", "make", tmp_path / "anna.pem", "--encrypt", *secret)[0] == 0
    assert (
        run("key", "public", "--key", tmp_path / "anna.pem", *secret, "--out", tmp_path / "again.pub.pem")[0]
        == 0
    )
    assert (tmp_path / "again.pub.pem").read_text() == (tmp_path / "anna.pub.pem").read_text()
    status, _, err = run("key", "make", tmp_path / "anna.pem")
    assert status == 1 and "never overwritten" in err
    (tmp_path / "pass").write_text("wrong\n")
    assert (
        run("key", "public", "--key", tmp_path / "anna.pem", *secret, "--out", tmp_path / "x.pub.pem")[0] == 1
    )


def test_a_passphrase_is_asked_for_at_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    arguments = [
        "key",
        "make",
        str(tmp_path / "anna.pem"),
        "--encrypt",
        "--passphrase-file",
        str(tmp_path / "pass"),
    ]
    assert main(arguments) == 0
    public = tmp_path / "x.pub.pem"
    status, seen = on_a_terminal(
        "correct horse", "key", "public", "--key", tmp_path / "anna.pem", "--out", public
    )
    assert status == 0 and "passphrase of" in seen and "correct horse" not in seen


@pytest.mark.parametrize(
    "arguments",
    [
        ("stage",),
        ("stage", "release", "build"),
        ("stage", "keys", "--repo", "r", "--out", "o", "--replace", "root"),
        ("stage", "file", "--repo", "r", "--out", "o", "authorities/support.json"),
        ("stage", "permit", "--repo", "r", "--out", "o", "--product", "p"),
        ("publish", "--repo", "r", "--keys", "k"),
        ("publish", "--repo", "r", "--keys", "k", "build", "--signatures", "s"),
        ("init", "--repo", "r"),
        ("init", "--public", "p"),
        ("export", "--repo", "r", "--to", "t"),
        ("key",),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("sign", "missing", "--yes"), "release-tool.input"),
        (("stage", "renew", "os", "--repo", "missing", "--out", "x"), "release-tool.repository"),
        (("stage", "release", "missing", "--repo", "r", "--out", "x"), "release-tool.input"),
        (("publish", "--repo", "r", "--keys", "k", "--request", "missing"), "release-tool.input"),
        (("export", "--repo", "missing", "--release", "1", "--to", "t"), "release-tool.repository"),
        (("init", "--public", "missing", "--request", "x"), "release-tool.keys"),
        (("key", "public", "--key", "missing.pem", "--out", "x.pub.pem"), "release-tool.keys"),
    ],
)
def test_a_refusal_ends_with_1_a_code_and_nothing_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments)
    assert status == 1 and f"[{code}]" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_expires_soon_is_said_by_the_commands_that_read_the_repository(run: Run, tmp_path: Path) -> None:

    world = TestRepository(tmp_path / "world", lifetimes={"os": timedelta(days=3)})
    where = ("--repo", world.repo, "--keys", world.keys)
    assert "os: expires at" in run("refresh", *where)[2]
    assert "less than a quarter of its life is left" in run("refresh", "--media", *where)[2]
    out = tmp_path / "request"
    assert "os: expires at" in run("stage", "renew", "targets", "--repo", world.repo, "--out", out)[2]
