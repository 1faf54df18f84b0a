"""The demo is a promise of the README, so it is a test: the whole story, with its own processes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.demo.room import Room
from tests.demo.timeline import StepFailedError, Timeline
from tests.sim.image import ImageToolMissingError, tool

STEPS = (
    "update-commits",
    "tampered-release-refused",
    "injection-defers-update",
    "power-cut-resumes",
    "broken-release-rolls-back",
    "no-device-process-listens",
)


@pytest.mark.integration
@pytest.mark.req("AG-01")
def test_the_demo_ends_well_and_no_device_process_listens(tmp_path: Path) -> None:
    try:
        tool("mke2fs")
        tool("debugfs")
    except ImageToolMissingError as err:
        pytest.skip(str(err))
    if shortage := Room.of(Path(tempfile.gettempdir())).shortage():
        pytest.skip(shortage)
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "tests.demo", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["ok"] is True
    assert {step["name"]: step["ok"] for step in report["steps"]} == dict.fromkeys(STEPS, True)
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert all(name in page for name in STEPS)


def test_a_failed_step_is_told_and_does_not_end_the_story() -> None:
    timeline = Timeline()
    with timeline.step("one", "fails"):
        raise StepFailedError("expected B, found A")
    with timeline.step("two", "works"):
        pass
    assert [(step.ok, step.detail) for step in timeline.steps] == [(False, "expected B, found A"), (True, "")]
