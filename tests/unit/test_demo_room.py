"""The demo says before it starts that the disk is too full for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo import __main__ as demo
from tests.demo.room import WORLD_BYTES, Room

GIB = 1024**3
PLACE = Path("/somewhere")


def test_a_disk_with_too_little_is_told_in_one_line_with_figures_and_consequence() -> None:
    shortage = Room(PLACE, free_bytes=20 * GIB, total_bytes=252 * GIB).shortage()
    assert shortage is not None and "\n" not in shortage
    for part in (
        "/somewhere",
        "20.0 of 252.0 GiB",
        "25.9 are needed",
        "25.2 (10%)",
        "check `disk`",
        "TMPDIR",
    ):
        assert part in shortage


@pytest.mark.parametrize("total_bytes", [8 * GIB, 252 * GIB])
def test_what_is_needed_is_the_tenth_that_health_wants_and_what_the_demo_writes(total_bytes: int) -> None:
    needed = WORLD_BYTES + int(total_bytes * 0.1)
    assert Room(PLACE, free_bytes=needed, total_bytes=total_bytes).shortage() is None
    assert Room(PLACE, free_bytes=needed - 1, total_bytes=total_bytes).shortage() is not None


def test_the_demo_ends_before_it_begins_where_the_disk_is_too_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    full = Room(tmp_path, free_bytes=GIB, total_bytes=100 * GIB)
    assert demo.main(["--out", str(out)], room_at=lambda place: full) == 3
    assert capsys.readouterr().err.startswith(f"make demo: {tmp_path}: 1.0 of 100.0 GiB are free")
    assert not out.exists()
