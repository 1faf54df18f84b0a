"""The TUF repository as devices see it: validators, single ranges, and nothing outside the folder."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from tests.sim.server_process import Client, ServerProcess, started

pytestmark = pytest.mark.integration
CONTENT = random.Random(7).randbytes(700_000)
TAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
PATH = "/tuf/targets/releases/ci/1.0/pack.twpk"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with started(tmp_path_factory.mktemp("repository")) as process:
        folder = process.repository / "targets" / "releases" / "ci" / "1.0"
        folder.mkdir(parents=True)
        (folder / "pack.twpk").write_bytes(CONTENT)
        (folder / "empty").write_bytes(b"")
        (folder / "link").symlink_to("/etc/hostname")
        (process.repository / "targets" / "out").symlink_to("/etc")
        (process.repository / "secret").write_text("not published")
        (process.repository / "metadata" / "timestamp.json").write_text("{}")
        (process.repository / "metadata" / "1.root.json").write_text("{}")
        yield process


@pytest.fixture(scope="module")
def device(server: ServerProcess) -> Client:
    return server.enroll("REP-00001")


def test_a_whole_target_comes_with_length_and_strong_validator(device: Client) -> None:
    answer = device.request("GET", PATH)
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["etag"] == TAG
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=699999-", 699_999, 699_999),
        ("bytes=-5", 699_995, 699_999),
        ("bytes=-9999999", 0, 699_999),
        ("bytes=600000-9999999", 600_000, 699_999),
    ],
)
def test_one_range_gets_exactly_its_bytes(device: Client, header: str, first: int, last: int) -> None:
    answer = device.request("GET", PATH, headers={"Range": header})
    assert (answer.status, answer.body) == (206, CONTENT[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(CONTENT)}"


@pytest.mark.parametrize("header", ["bytes=700000-", "bytes=-0", "bytes=900000-900001"])
def test_a_range_outside_is_416_with_the_size(device: Client, header: str) -> None:
    answer = device.request("GET", PATH, headers={"Range": header})
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "bytes=5-1", "lines=1-2", "bytes=-", "bytes=a-b"])
def test_what_is_not_one_range_gets_the_whole_file(device: Client, header: str) -> None:
    answer = device.request("GET", PATH, headers={"Range": header})
    assert (answer.status, len(answer.body)) == (200, len(CONTENT))


def test_a_huge_range_header_is_refused(device: Client) -> None:
    header = "bytes=" + ",".join(f"{n}-{n}" for n in range(300))
    assert device.request("GET", PATH, headers={"Range": header}).status == 400


def test_an_unchanged_target_is_304(device: Client) -> None:
    answer = device.request("GET", PATH, headers={"If-None-Match": f'"x", {TAG}'})
    assert (answer.status, answer.body) == (304, b"")


def test_if_range_with_the_present_validator_resumes(device: Client) -> None:
    answer = device.request("GET", PATH, headers={"Range": "bytes=10-19", "If-Range": TAG})
    assert (answer.status, answer.body) == (206, CONTENT[10:20])


def test_if_range_with_an_old_validator_gets_the_whole_new_file(device: Client) -> None:
    answer = device.request("GET", PATH, headers={"Range": "bytes=10-19", "If-Range": '"old"'})
    assert (answer.status, answer.body) == (200, CONTENT)


def test_if_match_with_an_old_validator_is_412(device: Client) -> None:
    assert device.request("GET", PATH, headers={"If-Match": '"old"'}).status == 412


def test_head_tells_the_same_without_a_body(device: Client) -> None:
    answer = device.request("HEAD", PATH)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))


def test_an_empty_target_is_an_empty_answer(device: Client) -> None:
    answer = device.request("GET", "/tuf/targets/releases/ci/1.0/empty")
    assert (answer.status, answer.body) == (200, b"")


def test_a_changed_target_gets_another_validator(server: ServerProcess, device: Client) -> None:
    path = server.repository / "targets" / "changing.bin"
    path.write_bytes(b"one")
    first = device.request("GET", "/tuf/targets/changing.bin").headers["etag"]
    path.write_bytes(b"two")
    assert device.request("GET", "/tuf/targets/changing.bin").headers["etag"] != first


def test_only_the_timestamp_is_never_stored(device: Client) -> None:
    assert device.request("GET", "/tuf/metadata/timestamp.json").headers["cache-control"] == "no-store"
    assert "immutable" in device.request("GET", "/tuf/metadata/1.root.json").headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        "/tuf/targets/../secret",
        "/tuf/targets/%2e%2e/secret",
        "/tuf/targets/..%2fsecret",
        "/tuf/targets/releases/../../secret",
        "/tuf/targets//etc/passwd",
        "/tuf/targets/%2fetc%2fpasswd",
        "/tuf/targets/releases/ci/1.0/link",
        "/tuf/targets/out/hostname",
        "/tuf/targets/releases",
        "/tuf/targets/releases/ci/1.0/.hidden",
        "/tuf/targets/releases%00/x",
        "/tuf/targets/",
        "/tuf/metadata/2.root.json",
        "/tuf/" + "a/" * 40,
    ],
)
def test_nothing_but_published_files_is_served(device: Client, path: str) -> None:
    answer = device.request("GET", path)
    assert (answer.status, answer.json["code"]) == (404, "request.not-found")


def test_a_write_to_the_repository_is_405(device: Client) -> None:
    assert device.request("PUT", PATH, b"x").status == 405
