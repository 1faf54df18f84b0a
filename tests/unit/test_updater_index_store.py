"""Kept indexes and hash tables are hints that prove themselves each time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tidewaiter_core.disk import DiskEntry, SystemDisk
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.payload import PayloadError
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.readback import IndexTable

from tests.sim.packs import MemorySource, Packed, packed, random_image
from tests.sim.state_disk import StateDisk


class BrokenDisk(SystemDisk):
    """A state directory whose named operations end in EIO."""

    broken: frozenset[str] | set[str] = frozenset()

    def remove(self, path: Path) -> None:
        self._fail("remove")
        super().remove(path)

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        self._fail("read_at")
        return super().read_at(fd, length, offset)

    def entries(self, directory: Path) -> list[DiskEntry]:
        self._fail("entries")
        return super().entries(directory)

    def _fail(self, name: str) -> None:
        if name in self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed(random_image(5, seed=2), tmp_path_factory.mktemp("image"))


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    return IndexStore(tmp_path / "index")


def test_an_index_is_fetched_once(image: Packed, store: IndexStore) -> None:
    source = MemorySource.of(image)
    for _ in range(2):
        with store.opened(image.component.index, source) as index:
            assert index.header.image_root == image.component.image_root
    assert source.spans == [(image.index_target, 0, image.component.index.length)]


def test_a_damaged_kept_index_is_fetched_again(image: Packed, store: IndexStore, tmp_path: Path) -> None:
    source = MemorySource.of(image)
    with store.opened(image.component.index, source):
        pass
    kept = tmp_path / "index" / f"{image.component.index.sha256}.twci"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with store.opened(image.component.index, source) as index:
        assert index.chunk_hash(4)
    assert len(source.spans) == 2


def test_flipped_bit_anywhere_in_an_index_is_refused_before_it_is_parsed(
    image: Packed, store: IndexStore
) -> None:
    source = MemorySource.of(image)
    for at in range(0, image.component.index.length, 37):
        source.tamper = lambda path, offset, data, at=at: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]  # type: ignore[misc]
        with pytest.raises(SourceError) as caught, store.opened(image.component.index, source):
            pass
        assert caught.value.code == "source.bad-bytes"


def test_a_hash_table_survives_and_names_its_sizes(image: Packed, store: IndexStore) -> None:
    store.keep_hashes(IndexTable(image.index))
    table = store.hashes(image.component.image_root)
    assert table is not None
    with table:
        assert (table.image_bytes, table.chunk_bytes, table.chunk_count) == (len(image.image), 65536, 5)
        assert [table.chunk_hash(chunk) for chunk in range(5)] == [
            image.index.chunk_hash(chunk) for chunk in range(5)
        ]


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[:-1], lambda d: b"x" + d[1:], lambda d: d[:-1] + b"x"]
)
def test_a_damaged_hash_table_is_as_good_as_none(
    image: Packed, store: IndexStore, tmp_path: Path, damage: object
) -> None:
    store.keep_hashes(IndexTable(image.index))
    path = tmp_path / "index" / f"{image.component.image_root}.hashes"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert store.hashes(image.component.image_root) is None


def test_only_what_belongs_to_a_slot_is_kept(image: Packed, store: IndexStore, tmp_path: Path) -> None:
    store.keep_hashes(IndexTable(image.index))
    (tmp_path / "index" / ("0" * 64 + ".hashes")).write_bytes(b"old")
    (tmp_path / "index" / ("1" * 64 + ".twci")).write_bytes(b"old")
    store.keep_only(roots={image.component.image_root}, parts=set())
    assert [path.name for path in (tmp_path / "index").iterdir()] == [f"{image.component.image_root}.hashes"]


def test_the_mark_of_an_unfinished_write_names_slot_and_image(store: IndexStore, tmp_path: Path) -> None:
    store.mark_writing("b", "r1")
    assert store.is_writing("b", "r1")
    assert not store.is_writing("a", "r1")
    assert not store.is_writing("b", "r2")
    (tmp_path / "index" / "writing.json").write_bytes(b"\0\0")
    assert store.is_writing("b", "r2")  # unreadable: look at the target rather than overwrite it
    store.mark_complete("r1")
    assert not store.is_writing("b", "r1")


def test_a_full_state_directory_is_told_as_such(image: Packed, tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index", disk=StateDisk(room_bytes=100))
    with (
        pytest.raises(StateWriteError, match="No space left"),
        store.opened(image.component.index, MemorySource.of(image)),
    ):
        pass


def test_a_medium_that_breaks_is_told_as_such_and_a_broken_table_promises_nothing(
    image: Packed, tmp_path: Path
) -> None:
    """An OSError that nobody expects would end the process, again after each restart."""
    disk = BrokenDisk()
    store = IndexStore(tmp_path / "index", disk=disk)
    with store.opened(image.component.index, MemorySource.of(image)) as index:
        store.keep_hashes(IndexTable(index))
    root = image.component.image_root
    store.mark_writing("B", root)
    table = store.hashes(root)
    assert table is not None
    disk.broken = {"remove", "read_at", "entries"}
    with table:
        assert table.chunk_hash(0) == b""
    assert store.hashes(root) is None
    with pytest.raises(StateWriteError, match="cannot be removed"):
        store.mark_complete(root)
    with pytest.raises(StateWriteError, match="cannot be listed"):
        store.keep_only(roots=set(), parts=set())
    disk.broken = {"remove"}
    with pytest.raises(StateWriteError, match="cannot be removed"):
        store.keep_only(roots=set(), parts=set())
    disk.broken = set()
    assert store.is_writing("B", root)
    assert store.hashes(root) is not None


def test_an_index_that_was_signed_unsound_is_a_payload_error(
    image: Packed, store: IndexStore, tmp_path: Path
) -> None:
    from dataclasses import replace

    from tidewaiter_core.model import Sha256

    bad = bytearray(image.index_bytes)
    bad[170] ^= 1
    ref = replace(image.component.index, sha256=Sha256.of(bytes(bad)))
    folder, _, _ = image.index_target.rpartition("/")
    source = MemorySource({f"{folder}/{ref.sha256}.index.twci": bytes(bad)})
    with pytest.raises(PayloadError), store.opened(ref, source):
        pass
