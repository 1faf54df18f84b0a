"""Reading a repository that is not what it should be: each finding is a refusal that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidewaiter_server import releases
from tidewaiter_server.errors import Refusal


def refusal_of(repository: Path) -> Refusal:
    with pytest.raises(Refusal) as found:
        releases.find(repository, "contrast-injector", "2.0.0")
    return found.value


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"signed": {"meta": {"snapsh', "timestamp.json"),
        (b"", "timestamp.json"),
        (b"<html><title>Blocked</title></html>", "timestamp.json"),
        (b"[" * 100_000, "timestamp.json"),
        (b'{"signed": []}', "timestamp.json"),
        (b'{"signed": {"meta": {"snapshot.json": {"version": "../../1"}}}}', "snapshot.json"),
        (b'{"signed": {"meta": {"snapshot.json": {"version": -1}}}}', "snapshot.json"),
    ],
    ids=["cut", "empty", "html", "deep", "no-object", "path-as-version", "negative"],
)
def test_metadata_that_is_none_is_refused_with_its_name(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "timestamp.json").write_bytes(content)
    refusal = refusal_of(tmp_path)
    assert (refusal.status, refusal.code) == (409, "release.mismatch")
    assert str(refusal).startswith(f"{named}:")
    assert "nothing imported" in str(refusal)


def test_oversized_metadata_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    with (tmp_path / "metadata" / "timestamp.json").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    refusal = refusal_of(tmp_path)
    assert (refusal.status, refusal.code) == (409, "release.mismatch")
    assert "at most 16777216 bytes" in str(refusal)


def test_a_repository_without_metadata_is_absent(tmp_path: Path) -> None:
    assert refusal_of(tmp_path).code == "release.absent"
