"""A stick is not believed either: links, devices, pipes, long names, wrong sizes, and a stick that is pulled out."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.errors import SourceError, SourceRefusedError
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import is_medium

from tests.sim.loop import loop_device, mounted, tool

BYTES = bytes(range(256)) * 4096
NAME = "directory:/media/stick"


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    top = tmp_path / "stick/TIDEWAITER"
    (top / "targets/releases/p/1").mkdir(parents=True)
    (top / "metadata").mkdir()
    (top / "metadata/timestamp.json").write_bytes(b"{}")
    (top / "targets/releases/p/1/pack").write_bytes(BYTES)
    return top


def opened(stick: Path) -> DirectorySource:
    return DirectorySource(os.open(stick, os.O_PATH | os.O_DIRECTORY), name="stick")


def descriptors() -> list[str]:
    gc.collect()  # a caught error holds its frames, and so the source, in a cycle
    return os.listdir("/proc/self/fd")


PACK = "releases/p/1/pack"


def refused(source: DirectorySource, path: str = PACK) -> SourceError:
    with pytest.raises(SourceError) as caught:
        list(source.span(path, 0, 10))
    return caught.value


def test_a_span_of_a_file_is_exactly_the_bytes_asked_for(stick: Path) -> None:
    source = opened(stick)
    assert b"".join(source.span(PACK, 1000, 600_000)) == BYTES[1000:601_000]
    assert source.received_bytes == 600_000


def test_metadata_is_read_to_one_byte_above_its_limit(stick: Path) -> None:
    source = opened(stick)
    (stick / "metadata/1.root.json").write_bytes(BYTES)
    assert b"".join(source.metadata("timestamp.json", 100)) == b"{}"
    assert b"".join(source.metadata("1.root.json", 1000)) == BYTES[:1001]


def test_a_file_of_a_million_gigabytes_costs_only_what_was_asked_for(stick: Path) -> None:
    os.truncate(stick / f"targets/{PACK}", 2**40)
    assert sum(map(len, opened(stick).span(PACK, 2**39, 4096))) == 4096


def test_a_file_that_is_too_short_gives_nothing(stick: Path) -> None:
    with pytest.raises(SourceError, match=rf"expected at least {len(BYTES) + 1} bytes") as caught:
        list(opened(stick).span(PACK, len(BYTES) - 9, 10))
    assert caught.value.code == "source.bad-range"


def test_a_file_that_is_not_there_is_final_as_a_404_of_a_server(stick: Path) -> None:
    with pytest.raises(SourceRefusedError) as caught:
        list(opened(stick).metadata("2.root.json", 100))
    assert caught.value.status == 404


def as_link(place: Path, elsewhere: Path) -> None:
    place.symlink_to(elsewhere / "secret")


def as_link_within(place: Path, elsewhere: Path) -> None:
    place.symlink_to("../1/other")
    place.with_name("other").write_bytes(BYTES)


def as_pipe(place: Path, elsewhere: Path) -> None:
    os.mkfifo(place)


def as_socket(place: Path, elsewhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(place.parent, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/{place.name}")
        os.close(here)


def as_folder(place: Path, elsewhere: Path) -> None:
    place.mkdir()


def as_linked_folder(place: Path, elsewhere: Path) -> None:
    (elsewhere / "1").mkdir()
    (elsewhere / "1/pack").write_bytes(BYTES)
    place.parent.rmdir()
    place.parent.symlink_to(elsewhere / "1")


@pytest.mark.parametrize("made", [as_link, as_link_within, as_pipe, as_socket, as_folder, as_linked_folder])
def test_hostile_stick_with_links_and_long_names_is_refused(
    stick: Path, tmp_path: Path, made: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_bytes(BYTES)
    place = stick / "targets" / PACK
    place.unlink()
    made(place, elsewhere)
    source = opened(stick)
    err = refused(source)
    assert (err.code, err.retryable, source.received_bytes) == ("source.path", False, 0)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("a" * 201, id="longer_than_a_path_may_be"),
        pytest.param("../" * 3 + "etc/passwd", id="upwards"),
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("releases//pack", id="empty_segment"),
        pytest.param("releases/p/.hidden", id="hidden"),
        pytest.param("releases/p/pack\n", id="control_character"),
        pytest.param("releases/p/päck", id="not_ascii"),
    ],
)
def test_hostile_names_are_not_looked_up(stick: Path, path: str) -> None:
    assert refused(opened(stick), path).code == "source.path"


@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device")
def test_a_device_in_place_of_a_file_is_not_opened(stick: Path) -> None:
    place = stick / "targets" / PACK
    place.unlink()
    os.mknod(place, 0o666 | 0o020000, os.makedev(1, 5))
    err = refused(opened(stick))
    assert (err.code, "a device" in str(err)) == ("source.path", True)


def test_a_stick_whose_targets_folder_is_a_link_is_refused(stick: Path, tmp_path: Path) -> None:
    (stick / "targets").rename(tmp_path / "real")
    (stick / "targets").symlink_to(tmp_path / "real")
    assert refused(opened(stick)).code == "source.path"


def test_a_vanished_stick_is_not_a_missing_file(stick: Path) -> None:
    source = opened(stick)
    shutil.rmtree(stick)
    err = refused(source)
    assert (err.code, err.retryable) == ("source.vanished", True)


@pytest.mark.privileged
@pytest.mark.parametrize("filesystem", ["vfat", "ext4"])
def test_a_stick_whose_device_is_gone_has_vanished_whatever_its_file_system_says(
    stick: Path, tmp_path: Path, filesystem: str
) -> None:
    image = tmp_path / "stick.img"
    fill(image, stick, filesystem)
    with loop_device(image) as device, mounted(device, tmp_path / "mnt", "-o", "ro") as mount:
        source = opened(mount)
        source.require_present()
        os.truncate(image, 0)  # a device that answers nothing any more
        for path in (PACK, "releases/p/9/never-looked-at"):
            assert refused(source, path).code == "source.vanished"
        with pytest.raises(SourceError):
            source.require_present()
        source.close()


def fill(image: Path, folder: Path, filesystem: str) -> None:
    """A file system with the content of `folder`, too large to be in any cache by accident."""
    image.touch()
    os.truncate(image, 64 << 20)
    if filesystem == "ext4":
        subprocess.run([tool("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-d", folder, image], check=True)
        return
    subprocess.run([tool("mkfs.vfat", "dosfstools"), image], check=True, stdout=subprocess.DEVNULL)
    parts = [str(path) for path in folder.iterdir()]
    subprocess.run([tool("mcopy", "mtools"), "-s", "-i", str(image), *parts, "::"], check=True)


def test_a_directory_without_a_repository_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no update medium") as caught:
        opened(tmp_path).require_present()
    assert caught.value.code == "source.vanished"


def test_a_stick_that_is_there_is_present(stick: Path) -> None:
    opened(stick).require_present()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_tells_how_to_mount(stick: Path) -> None:
    (stick / f"targets/{PACK}").chmod(0)
    assert "mount the medium so that every user may read" in str(refused(opened(stick)))


def test_no_descriptor_is_left_open(stick: Path) -> None:
    before = descriptors()
    source = opened(stick)
    list(source.span(PACK, 0, 10))
    refused(source, "releases/p/9/pack")
    (stick / "targets/link").symlink_to("releases")
    refused(source, "link/p/1/pack")
    del source
    assert descriptors() == before


def test_whether_a_target_is_there_is_told_without_reading_it(stick: Path) -> None:
    source = opened(stick)
    assert source.has_target(PACK, len(BYTES))
    assert not source.has_target(PACK, len(BYTES) - 1)
    assert not source.has_target("releases/p/2/pack", len(BYTES))
    assert source.received_bytes == 0


def test_the_bay_gives_the_medium_only_under_its_name(stick: Path) -> None:
    bay = MediaBay()
    source = opened(stick)
    bay.insert(NAME, source)
    assert bay.medium(NAME) is source
    with pytest.raises(SourceError) as caught:
        bay.medium("directory:/media/other")
    assert caught.value.code == "source.vanished"


def test_an_ejected_medium_is_gone_and_its_descriptor_closed(stick: Path) -> None:
    bay = MediaBay()
    before = descriptors()
    bay.insert(NAME, opened(stick))
    in_use = bay.medium(NAME)
    bay.eject(NAME)
    with pytest.raises(SourceError, match="not with the updater"):
        bay.medium(NAME)
    assert descriptors() == before
    assert refused(in_use).code == "source.vanished"


def test_a_source_name_is_one_line_of_bounded_length() -> None:
    assert is_medium(NAME)
    assert not any(map(is_medium, ("relay", NAME + "\n", "directory:" + "a" * 300)))
