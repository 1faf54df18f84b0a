"""The media side of the repository, and sticks made from it, as python-tuf's client sees them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tidewaiter_core.payload import Release
from tidewaiter_release.cli import main
from tidewaiter_release.errors import InputError, MediumError, RepositoryError, ThresholdError
from tidewaiter_release.repository import Store, export, renew_media
from tidewaiter_release.repository.medium import Medium
from tuf.api.exceptions import ExpiredMetadataError, UnsignedMetadataError

from tests.sim.clock import FakeClock
from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.tuf_client import TufDevice

IMAGE = bytes(range(256)) * 1024
DAY_S = 86_400
RUN = "import sys; from tidewaiter_release.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and an empty repository, made once: 33 keys cost more than a test."""
    directory = tmp_path_factory.mktemp("template")
    TestRepository(directory / "world")
    return directory / "world"


@pytest.fixture
def repository(tmp_path: Path, template: Path) -> TestRepository:
    shutil.copytree(template, tmp_path / "world")
    return TestRepository(tmp_path / "world")


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    (tmp_path / "stick").mkdir()
    return tmp_path / "stick"


def write(
    repository: TestRepository, stick: Path, *versions: str, patches: tuple[str, ...] | None = ()
) -> int:
    done = export(repository.store, stick, versions, clock=repository.clock, patches_from=patches)
    return done.written_bytes


def media_device(repository: TestRepository, served: Path, name: str = "media-device") -> TufDevice:
    root = repository.store.media.metadata / "1.root.json"
    return TufDevice(repository.directory / name, repository=served, root=root)


def files_of(stick: Path) -> set[str]:
    return {str(path.relative_to(stick)) for path in stick.rglob("*") if path.is_file()}


def test_a_stick_is_a_repository_that_python_tufs_client_accepts(
    repository: TestRepository, stick: Path
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    write(repository, stick, "1.0")
    device = media_device(repository, stick / "TIDEWAITER")
    release = Release.parse(device.fetch(made.path))
    assert release.digest == made.digest
    assert device.fetch(release.slot.pack.path) == (made.directory / "pack.twpk").read_bytes()
    assert device.fetch(release.slot.index.path) == (made.directory / "index.twci").read_bytes()


def test_a_stick_has_metadata_and_hash_prefixed_targets_and_nothing_else(
    repository: TestRepository, stick: Path
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    write(repository, stick, "1.0")
    slot = made.release.slot
    folder = f"TIDEWAITER/targets/releases/{repository.product}/1.0"
    metadata = {
        "1.root",
        "1.targets",
        "2.os",
        "1.injector-firmware",
        "1.support-authority",
        "1.trust-anchors",
    }
    assert files_of(stick) == {
        *(f"TIDEWAITER/metadata/{name}.json" for name in (*metadata, "2.snapshot", "timestamp")),
        f"{folder}/{made.digest}.release.json",
        f"{folder}/{slot.index.sha256}.index.twci",
        f"{folder}/{slot.pack.sha256}.pack.twpk",
    }


def test_stick_metadata_under_the_online_root_is_refused_and_the_other_way_round(
    repository: TestRepository, stick: Path
) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    write(repository, stick, "1.0")
    online_root = TufDevice(
        repository.directory / "online", repository=stick / "TIDEWAITER", root=repository.trusted_root
    )
    with pytest.raises(UnsignedMetadataError):
        online_root.session()
    with pytest.raises(UnsignedMetadataError):
        media_device(repository, repository.repo).session()


def test_a_next_online_root_is_no_next_media_root(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    write(repository, stick, "1.0")
    repository.rotate_root("timestamp")
    grafted = (repository.metadata / "2.root.json").read_bytes()
    (stick / "TIDEWAITER/metadata/2.root.json").write_bytes(grafted)
    with pytest.raises(UnsignedMetadataError):
        media_device(repository, stick / "TIDEWAITER").session()


def test_no_key_of_the_media_side_is_a_key_of_the_online_side_but_the_targets_keys(
    repository: TestRepository,
) -> None:
    online, media = repository.store.load().root.signed, repository.store.media.load().root.signed
    shared = set(online.keys) & set(media.keys)
    assert shared == set(online.roles["targets"].keyids) == set(media.roles["targets"].keyids)


def test_metadata_of_the_media_side_lives_90_days(repository: TestRepository) -> None:
    media = repository.store.media.load()
    for metadata in (media.snapshot, media.timestamp):
        left = metadata.signed.expires - repository.clock.now_utc()
        assert timedelta(days=89) < left <= timedelta(days=90)


def test_an_expired_stick_is_refused_by_the_client_and_not_even_written(tmp_path: Path, stick: Path) -> None:
    repository = TestRepository(tmp_path / "world", lifetimes={"media-timestamp": timedelta(seconds=-1)})
    repository.add_release(IMAGE, "1.0", 1)
    with pytest.raises(RepositoryError, match=r"media-timestamp: expired at .* nothing was written"):
        write(repository, stick, "1.0")
    assert files_of(stick) == set()
    with pytest.raises(ExpiredMetadataError):
        media_device(repository, repository.repo / "media").session()


def test_one_key_of_the_media_timestamp_is_not_enough(repository: TestRepository) -> None:
    for number in (1, 2):
        (repository.keys / f"media-timestamp-{number}.pem").unlink()
    with pytest.raises(ThresholdError, match="1 of the 3 keys of role media-timestamp found, 2 are needed"):
        renew_media(repository.store, repository.desk)


def test_a_release_published_without_the_media_keys_is_exported_after_they_signed(
    repository: TestRepository, stick: Path, tmp_path: Path
) -> None:
    hidden = tmp_path / "safe"
    hidden.mkdir()
    for path in repository.keys.glob("media-*"):
        path.rename(hidden / path.name)
    made = repository.add_release(IMAGE, "1.0", 1)
    with pytest.raises(InputError, match=r"release 1\.0: not on the media side .* sign the media side first"):
        write(repository, stick, "1.0")
    for path in hidden.iterdir():
        path.rename(repository.keys / path.name)
    renew_media(repository.store, repository.desk)
    write(repository, stick, "1.0")
    assert media_device(repository, stick / "TIDEWAITER").fetch(made.path)


def test_publishing_again_brings_the_media_side_up_to_date(repository: TestRepository) -> None:
    made = repository.make_release(IMAGE, "1.0", 1)
    kept = {path: path.read_bytes() for path in repository.keys.glob("media-*")}
    for path in kept:
        path.unlink()
    repository.publish(made)
    for path, data in kept.items():
        path.write_bytes(data)
        path.chmod(0o600)
    repository.publish(made)
    assert made.path in repository.store.media.load().delegated["os"].signed.targets


@pytest.mark.parametrize("roles", [("media-root",), ("media-timestamp", "media-snapshot"), ("targets",)])
def test_a_device_with_the_first_media_root_follows_a_rotation(
    repository: TestRepository, stick: Path, roles: tuple[str, ...]
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.rotate_root(*roles)
    write(repository, stick, "1.0")
    assert media_device(repository, stick / "TIDEWAITER").fetch(made.path)
    assert "TIDEWAITER/metadata/2.root.json" in files_of(stick)


def with_patches(repository: TestRepository) -> MadeRelease:
    first = repository.add_release(os.urandom(2**20), "1.0", 1)
    changed = bytearray(first.image.read_bytes())
    changed[500_000] ^= 1
    second = repository.add_release(bytes(changed), "1.1", 2)
    changed[700_000] ^= 1
    return repository.add_release(bytes(changed), "1.2", 3, patch_from=[first.image, second.image])


def test_only_the_chosen_patches_are_on_the_stick(
    repository: TestRepository, stick: Path, tmp_path: Path
) -> None:
    made = with_patches(repository)
    write(repository, stick, "1.2")
    assert not [name for name in files_of(stick) if name.endswith(".twpt")]
    write(repository, stick, "1.2", patches=("1.1",))
    assert len([name for name in files_of(stick) if name.endswith(".twpt")]) == 1
    write(repository, stick, "1.2", patches=None)
    assert (
        len([name for name in files_of(stick) if name.endswith(".twpt")])
        == len(made.release.slot.patches)
        == 2
    )


def test_a_patch_that_no_release_has_is_refused_by_name(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    repository.add_release(IMAGE + b"x", "1.1", 2)
    with pytest.raises(InputError, match=r"patches from 1\.0: no exported release has one"):
        write(repository, stick, "1.1", patches=("1.0",))


def test_the_same_export_again_writes_no_target(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    assert write(repository, stick, "1.0") > 0
    assert write(repository, stick, "1.0") == 0


def test_a_second_release_is_added_to_the_stick(repository: TestRepository, stick: Path) -> None:
    first = repository.add_release(IMAGE, "1.0", 1)
    write(repository, stick, "1.0")
    second = repository.add_release(IMAGE + b"x", "1.1", 2)
    write(repository, stick, "1.1")
    device = media_device(repository, stick / "TIDEWAITER")
    assert device.fetch(first.path) and device.fetch(second.path)
    assert "TIDEWAITER/metadata/2.os.json" not in files_of(stick)


@pytest.mark.parametrize(
    "name", ["TIDEWAITER/notes.txt", "TIDEWAITER/other/file", "TIDEWAITER/metadata/x.json"]
)
def test_foreign_files_are_never_overwritten(repository: TestRepository, stick: Path, name: str) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    (stick / name).parent.mkdir(parents=True)
    (stick / name).write_text("mine")
    with pytest.raises(MediumError):
        write(repository, stick, "1.0")
    assert files_of(stick) == {name}


def test_files_beside_the_folder_do_not_matter(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    (stick / "holiday.jpg").write_text("mine")
    write(repository, stick, "1.0")
    assert (stick / "holiday.jpg").read_text() == "mine"


def test_a_stick_of_another_repository_is_refused(
    repository: TestRepository, stick: Path, tmp_path: Path
) -> None:
    other = TestRepository(tmp_path / "other")
    other.add_release(IMAGE, "1.0", 1)
    write(other, stick, "1.0")
    repository.add_release(IMAGE, "1.0", 1)
    before = files_of(stick)
    with pytest.raises(MediumError, match="belongs to another repository"):
        write(repository, stick, "1.0")
    assert files_of(stick) == before


def test_a_stick_is_never_set_back_to_an_older_repository(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    copy = repository.keep_copy("old")
    repository.add_release(IMAGE + b"x", "1.1", 2)
    write(repository, stick, "1.1")
    repository.rollback_to(copy)
    with pytest.raises(MediumError, match="holds version 3, this repository has only 2"):
        write(repository, stick, "1.0")


@pytest.mark.parametrize("name", ["TIDEWAITER", "TIDEWAITER/targets", "TIDEWAITER/metadata"])
def test_a_link_on_the_stick_is_not_followed(
    repository: TestRepository, stick: Path, tmp_path: Path, name: str
) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    (tmp_path / "elsewhere").mkdir()
    (stick / name).parent.mkdir(exist_ok=True)
    (stick / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MediumError, match="expected a folder, found something else"):
        write(repository, stick, "1.0")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_medium_that_is_not_mounted_is_named(repository: TestRepository, tmp_path: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    with pytest.raises(MediumError, match="is the medium mounted"):
        write(repository, tmp_path / "missing", "1.0")


def test_a_damaged_file_on_the_stick_is_written_again(repository: TestRepository, stick: Path) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    write(repository, stick, "1.0")
    pack = next(stick.rglob("*.pack.twpk"))
    pack.write_bytes(b"x" * pack.stat().st_size)
    assert write(repository, stick, "1.0") == made.release.slot.pack.length
    assert pack.read_bytes() == (made.directory / "pack.twpk").read_bytes()


def test_a_hole_in_the_repository_is_found_before_anything_is_written(
    repository: TestRepository, stick: Path
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.file_of(made.release.slot.pack.path).unlink()
    with pytest.raises(RepositoryError, match="missing; the repository is incomplete"):
        write(repository, stick, "1.0")
    assert files_of(stick) == set()


def test_a_damaged_pack_is_never_exported(repository: TestRepository, stick: Path) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.flip_pack_byte(made)
    with pytest.raises(InputError, match="is not the file that was signed"):
        write(repository, stick, "1.0")
    assert not list(stick.rglob("*.pack.twpk")) and not list(stick.rglob("timestamp.json"))


class SmallMedium(Medium):
    def free_bytes(self) -> int:
        return 1000


def test_too_little_space_is_said_before_anything_is_written(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    with pytest.raises(MediumError, match="0 MiB free, 3 MiB are needed; nothing was written"):
        export(repository.store, stick, ["1.0"], clock=repository.clock, medium=SmallMedium(stick))
    assert files_of(stick) == set()


class FatMedium(Medium):
    def largest_file_bytes(self) -> int | None:
        return 1000


def test_a_pack_too_large_for_fat_is_said_before_anything_is_written(
    repository: TestRepository, stick: Path
) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    with pytest.raises(MediumError, match="FAT holds files of at most 1000; format the medium as exFAT"):
        export(repository.store, stick, ["1.0"], clock=repository.clock, medium=FatMedium(stick))
    assert files_of(stick) == set()


def test_an_unknown_version_is_refused_with_the_known_ones(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    with pytest.raises(InputError, match=f"release 2.0: .* which has {repository.product}/1.0"):
        write(repository, stick, "2.0")


def test_a_version_of_two_products_needs_the_product(repository: TestRepository, stick: Path) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    repository.add_release(IMAGE, "1.0", 1, product="other")
    with pytest.raises(InputError, match="several products have it"):
        write(repository, stick, "1.0")
    write(repository, stick, "other/1.0")


def test_an_export_killed_at_any_time_leaves_no_half_repository_and_is_continued(
    repository: TestRepository, stick: Path
) -> None:
    made = repository.add_release(os.urandom(24 * 2**20), "1.0", 1)
    command = [sys.executable, "-c", RUN, "export", "--repo", str(repository.repo)]
    command += ["--release", "1.0", "--to", str(stick)]

    def part_bytes() -> int:
        return sum(path.stat().st_size for path in stick.rglob("*.part"))

    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _wait(lambda: part_bytes() > 2**20 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (stick / "TIDEWAITER/metadata/timestamp.json").exists()
    write(repository, stick, "1.0")
    assert media_device(repository, stick / "TIDEWAITER").fetch(made.release.slot.pack.path)
    assert not list(stick.rglob("*.part"))


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_command_says_what_is_on_the_stick(
    repository: TestRepository, stick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    assert main(["export", "--repo", str(repository.repo), "--release", "1.0", "--to", str(stick)]) == 0
    out, err = capsys.readouterr()
    assert f"{repository.product} 1.0 sequence 1 digest {made.digest}" in out
    assert "devices accept it until 20" in out and "writing " in err
    assert main(["export", "--repo", str(repository.repo), "--release", "9", "--to", str(stick)]) == 1
    assert "[release-tool.input]" in capsys.readouterr().err


def test_an_expired_media_side_is_signed_again_by_refresh_media(tmp_path: Path, stick: Path) -> None:
    clock = FakeClock()
    repository = TestRepository(tmp_path / "world", clock=clock)
    repository.add_release(IMAGE, "1.0", 1)
    clock.advance(91 * DAY_S)
    with pytest.raises(RepositoryError, match="expired"):
        write(repository, stick, "1.0")
    renew_media(Store(repository.repo), repository.desk)
    with pytest.raises(RepositoryError, match="support-authority: expired"):
        write(repository, stick, "1.0")
