"""A real process that stages a kernel image is killed with SIGKILL, and what the next one fetches is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import uki_pieces
from tidewaiter_core.payload.release import build_release
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE

from tests.sim.device import PRODUCT, release_fields
from tests.sim.relay import Answer, Ask, relaying

pytestmark = [pytest.mark.integration, pytest.mark.req("UP-15")]

KERNEL_BYTES = 40 * 1024 * 1024 + 77
MOST_AGAIN_BYTES = 16 * 1024 * 1024

STAGER = """
import json, sys
from pathlib import Path
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release
from tidewaiter_updater.boot.esp import DirectEsp
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.kernels import KernelImages
from tidewaiter_updater.sources import RelaySource

folder = Path(sys.argv[1])
release = Release.parse((folder / "release.json").read_bytes())
kernels = KernelImages(
    DirectEsp(folder / "esp"),
    source_for=lambda name, control: RelaySource(folder / "s", clock=SystemClock(), cancelled=control.cancelled),
    clock=SystemClock(),
)
done = kernels.put(SlotName.B, release, "relay", cap_bytes=None, control=NeverControl(), notify=lambda notice: None)
with open("/proc/self/status") as status:
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
staged = kernels.is_staged(SlotName.B, release)
print(json.dumps({"kept": done.kept, "fetched": done.fetched, "staged": staged, "peak_kib": peak_kib}))
"""


def test_kill_at_80_percent_of_a_kernel_image_costs_at_most_16_mib(tmp_path: Path) -> None:
    kernel = Random(11).randbytes(KERNEL_BYTES)
    digest = Sha256.of(kernel)
    path = f"releases/{PRODUCT}/2.0/kernel.efi"
    fields = release_fields("2.0", 2, digest)
    part = {"kind": "uki", "slot": "B", "path": path, "length": len(kernel), "sha256": digest}
    fields["components"].append(part | {"pieces": [piece.sha256 for piece in uki_pieces(kernel)]})
    (tmp_path / "release.json").write_bytes(build_release(fields))
    for folder in (ENTRIES, PRIVATE):
        (tmp_path / "esp" / folder).mkdir(parents=True)
    target = tmp_path / "repository" / "targets" / path.replace("kernel.efi", f"{digest}.kernel.efi")
    target.parent.mkdir(parents=True)
    target.write_bytes(kernel)
    command = [sys.executable, "-c", STAGER, str(tmp_path)]
    with relaying(tmp_path / "repository", tmp_path / "s") as relay:
        first = subprocess.Popen(command, stdout=subprocess.PIPE)
        killed_at: list[int] = []

        def kill_at_80_percent(ask: Ask, honest: Answer) -> Answer | None:
            if ask.offset > 0.8 * len(kernel) and not killed_at:
                killed_at.append(ask.offset)
                first.send_signal(signal.SIGKILL)
            return None

        relay.lie = kill_at_80_percent
        assert first.wait(60) == -signal.SIGKILL
        assert first.stdout is not None
        first.stdout.close()
        relay.lie = lambda ask, honest: None
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["staged"]
    again = killed_at[0] - result["kept"]
    assert again <= MOST_AGAIN_BYTES
    assert result["fetched"] == len(kernel) - result["kept"]
    assert result["peak_kib"] <= 64 * 1024
