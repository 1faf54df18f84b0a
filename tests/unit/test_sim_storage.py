"""The storage model promises what POSIX and block devices promise, and not more: what it forgot would never be tested."""

import errno
from itertools import combinations
from pathlib import Path

import pytest
from tidewaiter_core import durable
from tidewaiter_core.disk import Disk, SystemDisk
from tidewaiter_core.errors import StateError

from tests.faults.crash_explorer.cuts import images, subsets
from tests.sim.storage import SECTOR_BYTES, Content, SimDisk, Storage
from tests.sim.storage.content import content_of, fingerprint, state_of
from tests.sim.storage.units import SectorWrite

FILE = Path("/file")
X, Y = b"x" * SECTOR_BYTES, b"y" * SECTOR_BYTES


def device_of(storage: Storage) -> bytes:
    return storage.device("disk").read(0, 4 * SECTOR_BYTES)


def left_by(storage: Storage) -> list[Content]:
    """What a cut at this moment may leave."""
    return list(images(storage.points[-1]))


def files_in(contents: list[Content], path: Path = FILE) -> set[bytes | None]:
    return {content.get(("file", str(path))) for content in contents}


def test_a_write_that_was_not_synced_may_be_lost_or_torn_anywhere() -> None:
    storage = Storage({})
    storage.device("disk").write(0, X + Y)
    found = {
        content.get(("block", "disk", 0), bytes(4096))[: 2 * SECTOR_BYTES] for content in left_by(storage)
    }
    assert {bytes(32), X + bytes(16), bytes(16) + Y, X + Y} <= found


def test_a_sector_in_flight_may_be_garbage_or_unreadable_until_it_is_written() -> None:
    storage = Storage({})
    storage.device("disk").write(0, X)
    bad = next(content for content in left_by(storage) if ("bad", "disk", 0) in content)
    after = Storage(bad)
    with pytest.raises(OSError) as caught:
        device_of(after)
    assert caught.value.errno == errno.EIO
    after.device("disk").write(0, bytes(SECTOR_BYTES))
    assert device_of(after) == bytes(4 * SECTOR_BYTES)
    garbage = {content.get(("block", "disk", 0), bytes(4096))[:SECTOR_BYTES] for content in left_by(storage)}
    assert len(garbage) == 3


def test_a_synced_write_is_never_lost() -> None:
    storage = Storage({})
    device = storage.device("disk")
    device.write(0, X)
    device.sync()
    assert len(left_by(storage)) == 1
    assert content_of(storage.state)["block", "disk", 0][:SECTOR_BYTES] == X


def test_a_lying_medium_shows_its_loss_only_past_the_cache() -> None:
    storage = Storage({})
    device = storage.device("disk")
    device.lies.syncs = {0}
    device.write(0, X + Y)
    device.sync()
    assert device_of(storage)[: 2 * SECTOR_BYTES] == X + bytes(SECTOR_BYTES)
    assert device.read(0, 2 * SECTOR_BYTES, cached=True) == X + Y


def test_a_rename_whose_content_was_not_synced_may_leave_an_empty_file() -> None:
    storage = Storage(content_of(state_of({("file", "/file"): b"old"})))
    disk = SimDisk(storage)
    fd = disk.create(Path("/new"))
    disk.write(fd, b"content")
    disk.replace(Path("/new"), FILE)
    assert files_in(left_by(storage)) >= {b"old", b"", b"content", b"con"}
    disk.sync_directory(Path("/"))
    assert b"old" not in files_in(left_by(storage))


def test_a_rename_that_was_not_synced_may_be_undone() -> None:
    storage = Storage({("file", "/file"): b"old"})
    disk = SimDisk(storage)
    fd = disk.create(Path("/new"))
    disk.write(fd, b"content")
    disk.sync(fd)
    disk.replace(Path("/new"), FILE)
    assert files_in(left_by(storage)) == {b"old", b"content"}


def test_a_rename_on_fat_has_four_outcomes() -> None:
    storage = Storage({("directory", "/esp"): b"", ("file", "/esp/old"): b"kernel"})
    disk = SimDisk(storage, fat=Path("/esp"))
    disk.replace(Path("/esp/old"), Path("/esp/new"))

    def bytes_of(content: Content, name: str) -> bytes | None:
        """What the name leads to; two names of the same clusters are a link and a file."""
        place = f"/esp/{name}"
        place = content[("link", place)].decode() if ("link", place) in content else place
        return content.get(("file", place))

    found = {tuple(bytes_of(content, name) for name in ("old", "new")) for content in left_by(storage)}
    assert found == {(b"kernel", None), (None, b"kernel"), (b"kernel", b"kernel"), (None, None)}
    disk.sync_directory(Path("/esp"))
    assert files_in(left_by(storage), Path("/esp/new")) == {b"kernel"}


def test_a_file_in_a_directory_that_was_not_synced_may_vanish_with_it() -> None:
    storage = Storage({})
    disk = SimDisk(storage)
    disk.make_directory(Path("/folder"))
    durable.write_atomic(Path("/folder/file"), b"content", disk=disk)
    assert files_in(left_by(storage), Path("/folder/file")) == {None, b"content"}
    disk.sync_directory(Path("/"))
    assert files_in(left_by(storage), Path("/folder/file")) == {b"content"}


def test_an_atomic_write_leaves_the_old_or_the_new_content_at_every_step() -> None:
    storage = Storage({("file", "/file"): b"old"})
    durable.write_atomic(FILE, b"content", disk=SimDisk(storage))
    found = {content.get(("file", "/file")) for point in storage.points for content in images(point)}
    assert found == {b"old", b"content"}
    assert files_in(left_by(storage)) == {b"content"}


def test_up_to_eight_pending_units_are_tried_in_every_subset() -> None:
    units = tuple(SectorWrite("disk", number, X) for number in range(8))
    found = {tuple(kept) for kept in subsets(units)}
    assert {kept for length in range(9) for kept in combinations(units, length)} <= found


def test_more_than_eight_are_tried_in_prefixes_single_drops_and_single_keeps() -> None:
    units = tuple(SectorWrite("disk", number, X) for number in range(20))
    found = {tuple(kept) for kept in subsets(units)}
    assert {units[:length] for length in range(21)} <= found
    assert {(*units[:number], *units[number + 1 :]) for number in range(20)} <= found
    assert {(unit,) for unit in units} <= found
    assert len(found) > 61 + 50


def test_equal_contents_have_equal_fingerprints_however_they_were_made() -> None:
    one, other = Storage({}), Storage({})
    for storage, names in ((one, ("/a", "/b")), (other, ("/b", "/a"))):
        for name in names:
            durable.write_atomic(Path(name), name.encode(), disk=SimDisk(storage))
    assert fingerprint(one.content()) == fingerprint(other.content())
    durable.write_atomic(Path("/a"), b"other", disk=SimDisk(one))
    assert fingerprint(one.content()) != fingerprint(other.content())


def test_a_reset_drops_what_a_reboot_would_have_written() -> None:
    for orderly, expected in ((True, X), (False, bytes(SECTOR_BYTES))):
        storage = Storage({})
        storage.device("disk").write(0, X)
        storage.power_cycle(orderly=orderly)
        assert device_of(storage)[:SECTOR_BYTES] == expected


@pytest.mark.parametrize("is_real", [True, False], ids=["kernel", "simulated"])
def test_state_documents_behave_alike_on_the_kernel_and_in_simulation(is_real: bool, tmp_path: Path) -> None:
    disk: Disk = SystemDisk() if is_real else SimDisk(Storage({}))
    folder = tmp_path / "state" if is_real else Path("/a/state")
    durable.make_directory(folder, disk=disk)
    path = folder / "file.json"
    assert durable.load_document(path, schema=1, disk=disk) is None
    for number in range(3):
        durable.save_document(path, {"number": number}, schema=1, disk=disk)
        assert durable.load_document(path, schema=1, disk=disk) == {"number": number}
    assert [entry.name for entry in disk.entries(folder)] == ["file.json"]
    durable.write_atomic(path, b"{", disk=disk)
    with pytest.raises(StateError):
        durable.load_document(path, schema=1, disk=disk)
    aside = durable.quarantine(path, disk=disk)
    assert not disk.exists(path)
    assert disk.read(aside, 100) == b"{"
    assert disk.read(aside, 0) == b""
    disk.remove(aside)
    disk.remove(aside)
    assert disk.entries(folder) == []
    with pytest.raises(FileNotFoundError):
        disk.read(path, 1)
    with pytest.raises(FileNotFoundError):
        disk.create(folder / "missing" / "file")
