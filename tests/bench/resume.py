"""A real process that installs is ended by SIGKILL at 80 %; what the next one fetches and writes once more is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.bench.result import Budget, Result
from tests.bench.run import act
from tests.bench.speed import Setting, worker
from tests.bench.storage import disk_slot

BOUND_BYTES: Final = 16 << 20


def resume(setting: Setting) -> Result:
    """Kill, go on, count; the slot must hold the image afterwards."""
    result = Result(name="resume", title="SIGKILL at 80 % of the pack, then another process", bars_unit="MiB")
    image, again = setting.image, {"fetched": 0, "written": 0}
    for number in range(setting.runs):
        with (
            disk_slot(setting.work, image.size_bytes) as slot,
            tempfile.TemporaryDirectory(prefix="state-", dir=setting.work) as state,
        ):
            slot.soil()
            command = worker("kill", slot.path, image.build, Path(state))
            killed = subprocess.run(command, capture_output=True, text=True, check=False)
            if killed.returncode != -signal.SIGKILL:
                raise RuntimeError(
                    f"the worker was to be killed, it ended with {killed.returncode}: {killed.stderr}"
                )
            first = json.loads(killed.stdout)
            second = json.loads(act(worker("install", slot.path, image.build, Path(state))).output)
            act(worker("read-back", slot.path, image.build, Path(state)))
        slot_component = image.release.slot
        needed = slot_component.pack.length + slot_component.index.length
        once_more = {
            "fetched": first["fetched"] + second["fetched"] - needed,
            "written": first["written"] + second["written"] - image.size_bytes,
        }
        result.pairs.append({"first": first, "second": second, "again": once_more})
        again = {kind: max(worst, once_more[kind]) for kind, worst in again.items()}
        setting.say(
            f"  run {number + 1} of {setting.runs}: {once_more['fetched'] / 2**20:.1f} MiB fetched and "
            f"{once_more['written'] / 2**20:.1f} MiB written again"
        )
    for kind, count in again.items():
        result.bars[f"{kind} again"] = round(count / 2**20, 2)
        result.budgets.append(
            Budget(
                what=f"{kind} again after SIGKILL", value=max(0, count), bound=BOUND_BYTES, is_minimum=False, unit="bytes"
            )
        )  # fmt: skip
    result.commands = [
        f"python -m tests.bench.worker {what} SLOT RELEASE STATE" for what in ("kill", "install", "read-back")
    ]
    result.notes.append("The worst of the runs. The slot was read back and holds the image each time.")
    return result
