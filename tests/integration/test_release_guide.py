"""docs/guides/releasing.md is true: its commands run, in their order, and lead to what it promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_release.repository import Severity, Store, lint

from tests.sim.tuf_client import TufDevice

GUIDE = Path(__file__).parents[2] / "docs/guides/releasing.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)

# `sign` asks a person; nobody is there to be asked.
PRELUDE = """
set -eu
tidewaiter-release() {
  if [ "$1" = sign ]; then command tidewaiter-release "$@" --yes; else command tidewaiter-release "$@"; fi
}
"""


def commands() -> list[str]:
    lines = (line for block in _BLOCK.findall(GUIDE.read_text()) for line in block.splitlines())
    return [line[2:] for line in lines if line.startswith("$ ")]


@pytest.mark.skipif(
    shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None,
    reason="needs Debian's e2fsprogs",
)
def test_the_guide_leads_to_devices_and_sticks_that_have_the_release(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    script = PRELUDE + "\n".join(commands())
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "SOURCE_DATE_EPOCH": "1790000000"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    store = Store(tmp_path / "desk/repository")
    assert [one for one in lint(store, clock=SystemClock()) if one.severity is Severity.ERROR] == []
    target = "releases/injector/1.1.0/release.json"
    for name, served, side in (
        ("device", store.directory, store),
        ("stick", tmp_path / "stick/TIDEWAITER", store.media),
    ):
        device = TufDevice(tmp_path / name / "state", repository=served, root=side.metadata / "1.root.json")
        assert device.fetch(target) == (tmp_path / "build-1.1/release.json").read_bytes()
    assert len(list((tmp_path / "stick").rglob("*.twpt"))) == 1
    assert (store.metadata / "2.root.json").exists()
