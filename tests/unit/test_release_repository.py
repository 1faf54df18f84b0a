"""The repository as python-tuf's client sees it, and what publishing does when it is interrupted or refused."""

from __future__ import annotations

import ast
import http.server
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tidewaiter_release
from tidewaiter_core.payload import Release
from tidewaiter_release.errors import (
    InputError,
    KeyFileError,
    PublishedError,
    RepositoryBusyError,
    RepositoryError,
    ThresholdError,
)
from tidewaiter_release.repository import Store, init_repository, lint, publish, refresh
from tuf.api.exceptions import (
    ExpiredMetadataError,
    UnsignedMetadataError,
)
from tuf.api.exceptions import (
    RepositoryError as TufRepositoryError,
)
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient.updater import Updater

from tests.sim.clock import FakeClock
from tests.sim.repository import TestRepository
from tests.sim.tuf_client import TufDevice

IMAGE = bytes(range(256)) * 1024


@pytest.fixture
def repository(tmp_path: Path) -> TestRepository:
    return TestRepository(tmp_path / "world")


def device_of(repository: TestRepository, name: str = "device") -> TufDevice:
    return TufDevice(repository.directory / name, repository=repository.repo, root=repository.trusted_root)


@pytest.fixture
def device(repository: TestRepository) -> TufDevice:
    return device_of(repository)


def errors(repository: TestRepository) -> list[str]:
    return [str(finding) for finding in lint(repository.store, clock=repository.clock)]


def test_a_published_release_is_installable_by_python_tufs_client(
    repository: TestRepository, device: TufDevice
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    release = Release.parse(device.fetch(made.path))
    assert release.digest == made.digest
    for part in (release.slot.index, release.slot.pack):
        data = device.fetch(part.path)
        assert data == (made.directory / part.path.rpartition("/")[2]).read_bytes()


def test_a_published_release_is_installable_over_real_http(
    repository: TestRepository, tmp_path: Path
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    handler = partial(_QuietHandler, directory=str(repository.repo))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "metadata").mkdir()
        updater = Updater(
            str(tmp_path / "metadata"),
            f"{base}/metadata/",
            target_dir=str(tmp_path),
            target_base_url=f"{base}/targets/",
            bootstrap=repository.trusted_root.read_bytes(),
        )
        info = updater.get_targetinfo(made.path)
        assert info is not None
        assert (
            Path(updater.download_target(info, str(tmp_path / "out"))).read_bytes()
            == (made.directory / "release.json").read_bytes()
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_fresh_repository_has_nothing_for_lint_to_say(repository: TestRepository) -> None:
    assert errors(repository) == []
    repository.add_release(IMAGE, "1.0", 1)
    assert errors(repository) == []


def test_keys_are_readable_by_their_owner_only(repository: TestRepository) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in repository.keys.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(repository.keys.stat().st_mode) == 0o700
    assert len(list(repository.keys.iterdir())) == (5 + 3 + 1 + 1 + 4 * 3) + (5 + 3 + 3)


def test_every_target_has_exactly_one_hash(repository: TestRepository) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    document = json.loads(repository.file_of_role("os").read_bytes())
    assert {tuple(target["hashes"]) for target in document["signed"]["targets"].values()} == {("sha256",)}


def test_init_refuses_a_directory_that_is_in_use(repository: TestRepository, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not empty"):
        init_repository(repository.repo, tmp_path / "other-keys", clock=repository.clock)
    assert not (tmp_path / "other-keys").exists()


def test_publishing_the_same_build_again_changes_nothing(repository: TestRepository) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    before = repository.file_of_role("timestamp").read_bytes()
    published = publish(repository.store, repository.desk, made.directory)
    assert (published.new, published.digest) == (False, made.digest)
    assert repository.file_of_role("timestamp").read_bytes() == before


def test_a_version_is_never_published_with_other_content(repository: TestRepository) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    other = repository.make_release(IMAGE + b"x", "1.0", 2)
    with pytest.raises(PublishedError, match="never changes"):
        repository.publish(other)


@pytest.mark.parametrize("sequence", [4, 5])
def test_a_sequence_that_does_not_rise_is_refused(repository: TestRepository, sequence: int) -> None:
    repository.add_release(IMAGE, "1.0", 5)
    with pytest.raises(PublishedError, match="not above 5"):
        repository.publish(repository.make_release(IMAGE + b"x", "1.1", sequence))


def test_another_product_counts_its_own_sequence(repository: TestRepository, device: TufDevice) -> None:
    repository.add_release(IMAGE, "1.0", 5)
    made = repository.add_release(IMAGE, "1.0", 1, product="other-product")
    assert Release.parse(device.fetch(made.path)).product == "other-product"


def test_one_key_of_the_os_role_is_not_enough(repository: TestRepository, device: TufDevice) -> None:
    made = repository.make_release(IMAGE, "1.0", 1)
    for number in (1, 2):
        (repository.keys / f"os-{number}.pem").unlink()
    with pytest.raises(ThresholdError, match="1 of the 3 keys of role os"):
        repository.publish(made)
    assert device.session().get_targetinfo(made.path) is None


def test_two_keys_of_the_os_role_are_enough(repository: TestRepository, device: TufDevice) -> None:
    (repository.keys / "os-2.pem").unlink()
    made = repository.add_release(IMAGE, "1.0", 1)
    assert device.session().get_targetinfo(made.path) is not None


def test_refresh_needs_the_two_online_keys_only(repository: TestRepository, device: TufDevice) -> None:
    for path in repository.keys.iterdir():
        if not path.name.startswith(("snapshot", "timestamp")):
            path.unlink()
    before = json.loads(repository.file_of_role("timestamp").read_bytes())["signed"]["version"]
    assert refresh(repository.store, repository.desk) == before + 1
    device.session()


def test_refresh_renews_the_snapshot_only_in_the_second_half_of_its_life(tmp_path: Path) -> None:
    clock = FakeClock()
    repository = TestRepository(tmp_path / "world", clock=clock)
    snapshot = repository.file_of_role("snapshot")
    clock.advance(3 * 86_400)
    repository.refresh()
    assert repository.file_of_role("snapshot") == snapshot
    clock.advance(86_400)
    repository.refresh()
    assert repository.file_of_role("snapshot") != snapshot


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_not_used(repository: TestRepository, mode: int) -> None:
    (repository.keys / "timestamp-1.pem").chmod(mode)
    with pytest.raises(KeyFileError, match="expected 0600"):
        repository.refresh()


def test_a_file_that_is_no_key_is_named(repository: TestRepository) -> None:
    (repository.keys / "timestamp-1.pem").write_bytes(b"no key")
    with pytest.raises(KeyFileError, match=r"timestamp-1\.pem"):
        repository.refresh()


def test_a_foreign_key_of_the_right_name_does_not_sign(repository: TestRepository, tmp_path: Path) -> None:
    other = TestRepository(tmp_path / "other")
    shutil.copy2(other.keys / "timestamp-1.pem", repository.keys / "timestamp-1.pem")
    with pytest.raises(ThresholdError, match="0 of the 1 keys of role timestamp"):
        repository.refresh()


@pytest.mark.parametrize("role", ["targets", "os", "snapshot", "timestamp", "root", "injector-firmware"])
def test_a_forged_repository_is_never_signed_on_top_of(repository: TestRepository, role: str) -> None:
    repository.forge_metadata(role)
    with pytest.raises(RepositoryError):
        repository.refresh()


def test_two_publishers_exclude_each_other(repository: TestRepository) -> None:
    with repository.store.lock(), pytest.raises(RepositoryBusyError):
        repository.refresh()


class StoppingStore(Store):
    """A store whose process dies before its n-th file is in place."""

    def __init__(self, directory: Path, *, after: int) -> None:
        super().__init__(directory)
        self._left = after

    def _step(self) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1

    def write(self, directory: Path, name: str, data: bytes) -> None:
        self._step()
        super().write(directory, name, data)

    def place_target(self, source: Path, target: TargetFile) -> None:
        self._step()
        super().place_target(source, target)


FILES_OF_A_PUBLISH = 6  # release.json, index, pack, os, snapshot, timestamp


@pytest.mark.parametrize("after", range(FILES_OF_A_PUBLISH))
def test_a_publish_that_dies_at_any_file_shows_the_old_repository_and_can_be_repeated(
    repository: TestRepository, after: int
) -> None:
    old = repository.add_release(IMAGE, "1.0", 1)
    new = repository.make_release(IMAGE + b"x", "1.1", 2)
    with pytest.raises(KeyboardInterrupt):
        publish(StoppingStore(repository.repo, after=after), repository.desk, new.directory)
    seen = device_of(repository, "in-between")
    assert seen.fetch(old.path) and seen.session().get_targetinfo(new.path) is None
    repository.publish(new)
    assert Release.parse(seen.fetch(new.path)).digest == new.digest
    assert errors(repository) == []


def test_a_publish_has_the_number_of_files_that_the_crash_test_walks(repository: TestRepository) -> None:
    made = repository.make_release(IMAGE, "1.0", 1)
    publish(StoppingStore(repository.repo, after=FILES_OF_A_PUBLISH), repository.desk, made.directory)
    assert not list(repository.repo.rglob("*.tmp"))


def test_a_file_that_changes_while_it_is_copied_is_not_published(
    repository: TestRepository, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"other")
    target = TargetFile(4, {"sha256": "0" * 64}, "releases/a/1/file")
    with pytest.raises(InputError, match="nothing was published"):
        repository.store.place_target(tmp_path / "file", target)
    assert not list(repository.targets.rglob("*file*"))


@pytest.mark.parametrize("roles", [(), ("timestamp",), ("snapshot",), ("root",), ("targets", "timestamp")])
def test_a_device_with_the_first_root_follows_a_rotation(
    repository: TestRepository, device: TufDevice, roles: tuple[str, ...]
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    device.fetch(made.path)
    repository.rotate_root(*roles)
    repository.refresh()
    assert device.fetch(made.path)
    assert device_of(repository, "new-device").fetch(made.path)
    assert errors(repository) == []


def test_twenty_rotations_later_the_first_root_still_leads_to_the_release(repository: TestRepository) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    for _ in range(20):
        repository.rotate_root("timestamp")
    assert device_of(repository).fetch(made.path)


def test_a_root_rotation_that_dies_before_the_new_timestamp_can_be_repaired_by_refresh(
    repository: TestRepository, device: TufDevice
) -> None:
    timestamp = repository.file_of_role("timestamp").read_bytes()
    repository.rotate_root("timestamp")
    repository.file_of_role("timestamp").write_bytes(timestamp)
    repository.refresh()
    device.session()


# The damage that TestRepository can do is damage to a client, and the client says so.


def test_a_flipped_pack_byte_is_refused_by_the_client(repository: TestRepository, device: TufDevice) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.flip_pack_byte(made)
    with pytest.raises(TufRepositoryError):
        device.fetch(made.release.slot.pack.path)


@pytest.mark.parametrize("role", ["targets", "os", "snapshot", "timestamp"])
def test_forged_metadata_is_refused_by_the_client(
    repository: TestRepository, device: TufDevice, role: str
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.forge_metadata(role)
    with pytest.raises(TufRepositoryError):
        device.fetch(made.path)


@pytest.mark.parametrize("role", ["targets", "os"])
def test_stolen_online_keys_cannot_choose_targets(
    repository: TestRepository, device: TufDevice, role: str
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.forge_metadata(role, with_online_keys=True)
    with pytest.raises(UnsignedMetadataError):
        device.fetch(made.path)


@pytest.mark.parametrize("role", ["targets", "os", "snapshot", "timestamp", "root"])
def test_an_expired_role_is_refused_by_the_client(
    repository: TestRepository, device: TufDevice, role: str
) -> None:
    made = repository.add_release(IMAGE, "1.0", 1)
    repository.expire(role)
    with pytest.raises(ExpiredMetadataError):
        device.fetch(made.path)


@pytest.mark.parametrize("role", ["timestamp", "root"])
def test_foreign_signatures_are_refused_by_the_client(
    repository: TestRepository, device: TufDevice, role: str
) -> None:
    repository.rotate_root()
    repository.sign_with_foreign_keys(role)
    with pytest.raises(UnsignedMetadataError):
        device.session()


def test_too_few_signatures_are_refused_by_the_client(repository: TestRepository, device: TufDevice) -> None:
    repository.rotate_root()
    repository.drop_signatures("root", keep=2)
    with pytest.raises(UnsignedMetadataError):
        device.session()


def test_a_replayed_older_state_is_refused_by_a_client_that_saw_the_newer(
    repository: TestRepository, device: TufDevice
) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    copy = repository.keep_copy("old")
    made = repository.add_release(IMAGE + b"x", "1.1", 2)
    device.fetch(made.path)
    repository.rollback_to(copy)
    with pytest.raises(TufRepositoryError):
        device.session()


def test_a_target_outside_the_paths_of_its_role_is_invisible_to_the_client(
    repository: TestRepository, device: TufDevice
) -> None:
    repository.add_target("os", "firmware/head/1.0/image.bin", b"not by this role")
    assert device.session().get_targetinfo("firmware/head/1.0/image.bin") is None
    repository.add_target("injector-firmware", "firmware/head/1.1/image.bin", b"by the right role")
    assert device.fetch("firmware/head/1.1/image.bin") == b"by the right role"


def test_lifetimes_can_be_shortened_for_a_test(tmp_path: Path) -> None:
    repository = TestRepository(tmp_path / "world", lifetimes={"timestamp": timedelta(minutes=5)})
    metadata: Metadata[Any] = Metadata.from_bytes(repository.file_of_role("timestamp").read_bytes())
    assert metadata.signed.expires - repository.clock.now_utc() <= timedelta(minutes=5)


@pytest.fixture(autouse=True)
def _no_umask_surprise() -> Iterator[None]:
    before = os.umask(0o077)  # a strict desk: published files must be readable by the server all the same
    yield
    os.umask(before)


def test_published_files_are_readable_by_a_server_of_another_user(repository: TestRepository) -> None:
    repository.add_release(IMAGE, "1.0", 1)
    for path in [*repository.metadata.rglob("*"), *repository.targets.rglob("*"), repository.repo]:
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_only_the_repository_package_imports_tuf_and_securesystemslib() -> None:
    package = Path(tidewaiter_release.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name == "repository":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"tuf", "securesystemslib"} & {name.partition(".")[0] for name in names}, path
