"""inspect says of any object what it is, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_release.cli import main
from tidewaiter_release.repository import edits
from tidewaiter_release.repository.keys import load_signer
from tidewaiter_release.repository.request import read_request
from tidewaiter_release.repository.sign import sign
from tidewaiter_release.repository.signing import Calendar
from tidewaiter_release.repository.stage import stage

from tests.sim.repository import MadeRelease, TestRepository


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestRepository, MadeRelease, Path]:
    """A repository, a release with a patch, and a signing request that one person signed."""
    directory = tmp_path_factory.mktemp("inspect")
    repository = TestRepository(directory / "world")
    old = repository.add_release(bytes(range(256)) * 4096, "1.0", 1)
    made = repository.make_release(bytes(range(256)) * 4096 + b"x", "1.1", 2, patch_from=[old.image])
    calendar = Calendar(clock=SystemClock())
    folder = directory / "request"
    request = stage(repository.store, folder, edits.release(made.directory), calendar=calendar)
    sign(read_request(folder), folder, [load_signer(repository.keys / "os-1.pem")])
    assert request.items
    return repository, made, folder


def shown(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[str, dict[str, Any]]:
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", "--json", str(path)]) == 0
    return text, json.loads(capsys.readouterr().out)


def test_a_release_is_shown_with_its_digest(
    world: tuple[TestRepository, MadeRelease, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, made, _ = world
    text, document = shown(capsys, made.directory / "release.json")
    assert (document["kind"], document["digest"]) == ("release", made.digest)
    assert document["release"]["sequence"] == 2 and made.release.slot.pack.sha256 in text


def test_index_pack_and_patch_are_shown(
    world: tuple[TestRepository, MadeRelease, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, made, _ = world
    root = made.release.slot.image_root
    assert shown(capsys, made.directory / "index.twci")[1]["image_root"] == root
    assert shown(capsys, made.directory / "pack.twpk")[1]["image_root"] == root
    patch = next(made.directory.glob("*.twpt"))
    assert shown(capsys, patch)[1]["to_root"] == root


def test_metadata_is_shown_with_who_signed(
    world: tuple[TestRepository, MadeRelease, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    repository, _, _ = world
    _, document = shown(capsys, repository.metadata / "1.root.json")
    assert document["signed"]["_type"] == "root" and len(document["signed_by"]) == 5


def test_a_signing_request_is_shown_with_what_it_changes_and_who_signed(
    world: tuple[TestRepository, MadeRelease, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, made, folder = world
    text, document = shown(capsys, folder)
    assert f"release {made.release.product} 1.1" in text and "os-3 signed by os-1" in text
    items = {item["item"]: item for item in document["items"]}
    assert len(items["os-3"]["signed_by"]) == 1 and items["media-timestamp-3"]["signed_by"] == []
    assert shown(capsys, folder / "request.json")[1] == document


def test_a_folder_that_is_no_request_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "request.json: cannot be read" in capsys.readouterr().err
