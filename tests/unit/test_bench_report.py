"""What the benchmarks make of their figures: verdicts, pages, and the archive a peer installs from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.page import page
from tests.bench.peers import version, write_archive
from tests.bench.result import Budget, Result, Verdict, spread
from tests.bench.table import summary, write_docs

MACHINE: dict[str, Any] = {"processor": "<toy>", "cpus": 2, "load": [0.1, 0.2]}


def budget(**more: Any) -> Budget:
    given: dict[str, Any] = {"what": "speed of dd", "value": 0.89, "bound": 0.9, "is_minimum": True}
    return Budget(**{**given, **more})


def a_result(**more: Any) -> Result:
    given: dict[str, Any] = {
        "name": "install-disk",
        "title": "Install & <write>",
        "budgets": [
            budget(),
            budget(what="peak", value=40 << 20, bound=64 << 20, is_minimum=False, unit="bytes"),
        ],
        "bars": {"tidewaiter": 420.0, "dd": 300.0},
        "stage_shares": {"fetch": 0.1, "hash": 0.2, "decode": 0.3, "write": 0.3, "sync": 0.1},
        "commands": ["dd if=IMAGE of=SLOT"],
        "peers": {"dd": "dd 9.1"},
        "skipped": ["rauc: not found"],
    }
    return Result(**{**given, **more})


@pytest.mark.parametrize(
    ("value", "is_minimum", "verdict"),
    [(0.9, True, "held"), (0.89, True, "missed"), (0.9, False, "held"), (0.91, False, "missed")],
)
def test_a_bound_is_held_up_to_its_own_value(value: float, is_minimum: bool, verdict: str) -> None:
    assert budget(value=value, is_minimum=is_minimum).verdict == verdict


def test_a_bound_that_does_not_apply_fails_nobody() -> None:
    result = a_result(budgets=[budget(not_binding="dd is fast here")])
    assert result.budgets[0].verdict is Verdict.NOT_BINDING
    assert result.is_held
    assert "dd is fast here" in summary([result])


def test_one_missed_bound_is_the_verdict_of_the_whole_benchmark(tmp_path: Path) -> None:
    result = a_result()
    result.write(tmp_path)
    document = json.loads((tmp_path / "install-disk.json").read_text())
    assert document["verdict"] == "missed"
    assert [one["verdict"] for one in document["budgets"]] == ["missed", "held"]
    assert "1 bounds held, 1 missed" in summary([result])


def test_the_documentation_is_made_from_the_files_alone(tmp_path: Path) -> None:
    a_result().write(tmp_path)
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    write_docs(tmp_path / "benchmarks.md", tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    for expected in (
        "| speed of dd | 0.89 x (>= 0.90 x) | missed |",
        "40.0 MiB",
        "dd if=IMAGE of=SLOT",
        "decode 30%",
    ):
        assert expected in text


def test_what_people_wrote_below_the_figures_stays(tmp_path: Path) -> None:
    page_file = tmp_path / "benchmarks.md"
    write_docs(page_file, tmp_path)
    page_file.write_text(page_file.read_text() + "\n## About these figures\n")
    a_result().write(tmp_path)
    write_docs(page_file, tmp_path)
    text = page_file.read_text()
    assert text.startswith("# Benchmarks\n") and text.endswith("\n## About these figures\n")
    assert "Install & <write>" in text


def test_the_page_escapes_and_loads_nothing(tmp_path: Path) -> None:
    text = page([a_result()], MACHINE)
    assert "Install &amp; &lt;write&gt;" in text and "&lt;toy&gt;" in text
    assert text.count("<svg") == text.count("</svg>") == 2
    assert not any(word in text for word in ("<script", "http:", "https:", "src="))


def test_the_spread_has_the_middle_of_the_runs() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}


def test_an_update_archive_has_headers_names_and_checksums_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "sw-description").write_bytes(b"\x01\xff\x02")
    write_archive(tmp_path / "update.swu", [tmp_path / "sw-description"])
    data = (tmp_path / "update.swu").read_bytes()
    assert len(data) % 512 == 0
    assert data[:6] == b"070702"
    assert int(data[54:62], 16) == 3  # size
    assert int(data[102:110], 16) == 0x102  # sum of the bytes
    name_end = 110 + len("sw-description") + 1
    assert data[110:name_end] == b"sw-description\0"
    content = name_end + -name_end % 4
    assert data[content : content + 4] == b"\x01\xff\x02\0"
    assert data[content + 4 : content + 10] == b"070702" and b"TRAILER!!!\0" in data


def test_a_program_that_says_no_number_is_named_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, says in (("toolx", "Toolx v"), ("dpkg-query", "toolx 1.2-3")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert version("toolx") == "Debian toolx 1.2-3"


def test_a_program_nobody_has_packaged_is_named_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tooly"
    program.write_text("#!/bin/sh\necho 'Tooly'\necho 'version 3.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert version("tooly") == "version 3.1"
    assert version("nobody") == "unknown"
