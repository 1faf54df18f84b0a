"""Patches as parts of a release: built, published, linted, inspected, and refused where they cannot be believed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tidewaiter_core.payload import PayloadError
from tidewaiter_release.check import check_build
from tidewaiter_release.cli import main
from tidewaiter_release.errors import BuildMismatchError, InputError
from tidewaiter_release.inspect import inspect
from tidewaiter_release.patches import unpack_image
from tidewaiter_release.repository import lint

from tests.sim.patches import CHUNK, changed
from tests.sim.repository import TestRepository

OLD = random.Random(1).randbytes(12 * CHUNK)
NEW = changed(OLD, seed=2, edits=4)


@pytest.fixture
def repository(tmp_path: Path) -> TestRepository:
    return TestRepository(tmp_path)


def complaints(repository: TestRepository) -> list[str]:
    return [str(finding) for finding in lint(repository.store, clock=repository.clock)]


def test_a_published_release_names_its_patches_and_lint_applies_them(repository: TestRepository) -> None:
    old = repository.add_release(OLD, "1.0.0", 1)
    new = repository.add_release(NEW, "1.1.0", 2, patch_from=[old.directory])
    (patch,) = new.release.slot.patches
    assert patch.from_root == old.release.slot.image_root
    assert patch.length < new.release.slot.pack.length / 2
    assert repository.file_of(patch.path).stat().st_size == patch.length
    assert complaints(repository) == []


def test_image_and_build_directory_give_the_same_patch(repository: TestRepository) -> None:
    old = repository.make_release(OLD, "1.0.0", 1)
    by_image = repository.make_release(NEW, "1.1.0", 2, patch_from=[old.image])
    first = by_image.release.digest
    assert repository.make_release(NEW, "1.1.0", 2, patch_from=[old.directory]).release.digest == first


def test_a_patch_that_would_not_pay_is_left_out(repository: TestRepository, tmp_path: Path) -> None:
    (tmp_path / "stranger").write_bytes(random.Random(9).randbytes(len(NEW)))
    made = repository.make_release(NEW, "1.1.0", 2, patch_from=[tmp_path / "stranger"])
    assert made.release.slot.patches == ()
    assert not list(made.directory.glob("*.twpt"))


def test_the_new_image_itself_and_the_same_image_twice_are_refused(repository: TestRepository) -> None:
    old = repository.make_release(OLD, "1.0.0", 1)
    with pytest.raises(InputError, match="new image itself"):
        repository.make_release(OLD, "1.1.0", 2, patch_from=[old.image])
    with pytest.raises(InputError, match="twice"):
        repository.make_release(NEW, "1.1.0", 2, patch_from=[old.image, old.directory])


def test_a_directory_that_is_no_build_is_refused(repository: TestRepository, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory that"):
        repository.make_release(NEW, "1.1.0", 2, patch_from=[tmp_path])


def test_a_build_with_a_damaged_patch_is_not_published(repository: TestRepository) -> None:
    old = repository.make_release(OLD, "1.0.0", 1)
    new = repository.make_release(NEW, "1.1.0", 2, patch_from=[old.image])
    (path,) = new.directory.glob("*.twpt")
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(BuildMismatchError, match="sha256"):
        check_build(new.directory)
    path.unlink()
    with pytest.raises(InputError):
        check_build(new.directory)


def test_lint_reports_a_patch_that_does_not_apply(repository: TestRepository) -> None:
    old = repository.add_release(OLD, "1.0.0", 1)
    new = repository.add_release(NEW, "1.1.0", 2, patch_from=[old.directory])
    repository.flip_byte(new.release.slot.patches[0].path, 300)
    assert any("error patch" in line for line in complaints(repository))


def test_lint_warns_of_a_patch_it_cannot_apply(repository: TestRepository, tmp_path: Path) -> None:
    (tmp_path / "factory").write_bytes(OLD)
    repository.add_release(NEW, "1.1.0", 2, patch_from=[tmp_path / "factory"])
    (only,) = complaints(repository)
    assert only.startswith("warning patch") and "could not be applied" in only


def test_a_patch_is_inspected(repository: TestRepository, tmp_path: Path) -> None:
    old = repository.make_release(OLD, "1.0.0", 1)
    new = repository.make_release(NEW, "1.1.0", 2, patch_from=[old.image])
    (path,) = new.directory.glob("*.twpt")
    lines = inspect(path).lines
    assert lines[0] == "patch (every table is sound)"
    assert str(old.release.slot.image_root) in lines[1]
    assert any("patch" in line for line in inspect(new.directory / "release.json").lines)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PayloadError):
        inspect(path)


def test_a_build_is_unpacked_to_the_image_it_was_made_from(
    repository: TestRepository, tmp_path: Path
) -> None:
    made = repository.make_release(OLD, "1.0.0", 1)
    unpack_image(made.directory / "index.twci", made.directory / "pack.twpk", tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == OLD


def test_delta_and_apply_work_on_bare_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in (("old.img", OLD), ("new.img", NEW)):
        (tmp_path / name).write_bytes(data)
    old, new, patch, made = (str(tmp_path / name) for name in ("old.img", "new.img", "p.twpt", "made.img"))
    assert main(["delta", old, new, "-o", patch, "--level", "3"]) == 0
    assert "% of the image" in capsys.readouterr().out
    assert main(["apply", old, patch, "-o", made]) == 0
    assert "every chunk proven" in capsys.readouterr().out
    assert Path(made).read_bytes() == NEW
    assert main(["apply", new, patch, "-o", made]) == 1
    assert "[release-tool.mismatch]" in capsys.readouterr().err
