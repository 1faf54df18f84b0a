"""A real process that fills a real file is killed with SIGKILL, and what the next one fetches is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.packs import CHUNK_BYTES, packed, random_image
from tests.sim.relay import Answer, Ask, relaying

CHUNKS = 16 * 40  # 40 MiB

INSTALLER = """
import json, resource, sys
from pathlib import Path
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.payload.components import FileSystem, IndexRef, PackRef, SlotComponent
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.slots import SlotDevice, install, read_back
from tidewaiter_updater.sources import RelaySource

folder = Path(sys.argv[1])
given = json.loads((folder / "component.json").read_text())
component = SlotComponent(**{
    **given, "fs": FileSystem.EXT4, "index": IndexRef(**given["index"]), "pack": PackRef(**given["pack"]), "patches": ()
})
source = RelaySource(folder / "s", clock=SystemClock())
store = IndexStore(folder / "index")
with store.opened(component.index, source) as index:
    device = SlotDevice.open(folder / "slot", image_bytes=component.image_bytes)
    result = install(device, component, index, source, store=store, clock=SystemClock())
    bad = read_back(device, index)
with open("/proc/self/status") as status:
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({
    "bad": bad, "fetched": result.counts.fetched, "written": result.counts.written,
    "skipped": result.counts.skipped, "peak_kib": peak_kib,
}))
"""


@pytest.mark.integration
def test_kill_at_80_percent_costs_at_most_16_mib(tmp_path: Path) -> None:
    new = packed(random_image(CHUNKS, seed=8), tmp_path / "build")
    for target, data in ((new.pack_target, new.pack), (new.index_target, new.index_bytes)):
        path = tmp_path / "repository" / "targets" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    component = {
        "name": new.component.name,
        "image_bytes": new.component.image_bytes,
        "image_sha256": new.component.image_sha256,
        "image_root": new.component.image_root,
        "chunk_bytes": new.component.chunk_bytes,
        "verity": None,
        "index": {name: getattr(new.component.index, name) for name in ("path", "length", "sha256")},
        "pack": {name: getattr(new.component.pack, name) for name in ("path", "length", "sha256")},
    }
    (tmp_path / "component.json").write_text(json.dumps(component))
    (tmp_path / "slot").write_bytes(b"\xa5" * len(new.image))
    command = [sys.executable, "-c", INSTALLER, str(tmp_path)]
    with relaying(tmp_path / "repository", tmp_path / "s") as relay:
        first = subprocess.Popen(command, stdout=subprocess.PIPE)

        def kill_at_80_percent(ask: Ask, honest: Answer) -> Answer | None:
            if ask.path.endswith("pack.twpk") and ask.offset > 0.8 * len(new.pack):
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
    assert result["bad"] == []
    assert (tmp_path / "slot").read_bytes() == new.image
    assert result["written"] <= 0.2 * len(new.image) + 16 * 1024 * 1024
    assert result["fetched"] <= 0.2 * len(new.pack) + 16 * 1024 * 1024
    assert result["skipped"] >= len(new.image) // 2 - 16 * CHUNK_BYTES
    assert result["peak_kib"] <= 64 * 1024
