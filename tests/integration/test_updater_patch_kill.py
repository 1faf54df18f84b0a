"""A real process that patches a real file is killed with SIGKILL; what the next one fetches and the memory used are counted."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.packs import Packed, packed, with_patch
from tests.sim.relay import Answer, Ask, relaying

MIB = 1024 * 1024

INSTALLER = """
import json, pickle, sys
from pathlib import Path
from types import SimpleNamespace
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import SlotRecord
from tidewaiter_updater.slot_store import DeviceSlots
from tidewaiter_updater.sources import RelaySource

folder = Path(sys.argv[1])
component, old_root, table, sizes = pickle.loads((folder / "given").read_bytes())
source = RelaySource(folder / "s", clock=SystemClock())
store = IndexStore(folder / "index")
store.keep_table(table, image_root=old_root, image_bytes=sizes[0], chunk_bytes=sizes[1])
del table
record = SlotRecord(digest=Sha256.of(b""), root=old_root, sequence=1, epoch=0, version="1")
slots = DeviceSlots(
    {SlotName.A: folder / "slot-a", SlotName.B: folder / "slot-b"},
    store=store, records=lambda: {SlotName.A: record}, source_for=lambda name, control: source,
    clock=SystemClock(), beat=lambda stage: None,
)
reports, notices = [], []
release = SimpleNamespace(slot=component)
slots.write(
    SlotName.B, release, "relay", resume="resume" in sys.argv, cap_bytes=None,
    report=lambda report: reports.append(report) or reports.__delitem__(slice(-1)), notify=notices.append,
    control=NeverControl(),
)
bad = slots.read_back(SlotName.B, release, "relay", report=lambda report: None, control=NeverControl())
with open("/proc/self/status") as status:
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
counts = reports[-1].counts
print(json.dumps({
    "bad": bad, "fetched": source.received_bytes, "written": counts.written, "skipped": counts.skipped,
    "peak_kib": peak_kib, "notices": len(notices),
}))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    """48 MiB of which 16 moved by a byte (full prefixes), 24 are fresh (a large download) and 8 stay."""
    folder = tmp_path_factory.mktemp("pair")
    rng = random.Random(1)
    image = rng.randbytes(48 * MIB)
    old = packed(image, folder / "old", version="1.0")
    changed = b"x" + image[: 16 * MIB - 1] + rng.randbytes(24 * MIB) + image[40 * MIB :]
    new = packed(changed, folder / "new", version="2.0")
    return old, with_patch(new, old, folder / "patch", level=12)


def lay_out(folder: Path, old: Packed, new: Packed) -> list[str]:
    """Slots, repository and what the installer is given; returns its command."""
    for target, data in ((new.patch_target, new.patch), (new.index_target, new.index_bytes)):
        path = folder / "repository" / "targets" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    index = old.index
    table = [index.chunk_hash(chunk) for chunk in range(index.header.chunk_count)]
    given = (new.component, old.component.image_root, table, (len(old.image), old.component.chunk_bytes))
    (folder / "given").write_bytes(pickle.dumps(given))
    (folder / "slot-a").write_bytes(old.image)
    (folder / "slot-b").write_bytes(b"\xa5" * len(new.image))
    return [sys.executable, "-c", INSTALLER, str(folder)]


@pytest.mark.integration
def test_kill_at_80_percent_of_a_patch_costs_at_most_16_mib_and_memory_stays_bounded(
    tmp_path: Path, pair: tuple[Packed, Packed]
) -> None:
    old, new = pair
    command = lay_out(tmp_path, old, new)
    with relaying(tmp_path / "repository", tmp_path / "s") as relay:
        first = subprocess.Popen(command, stdout=subprocess.PIPE)

        def kill_at_80_percent(ask: Ask, honest: Answer) -> Answer | None:
            if ask.path.endswith(".twpt") and ask.offset > 0.8 * len(new.patch):
                first.send_signal(signal.SIGKILL)
            return None

        relay.lie = kill_at_80_percent
        assert first.wait(60) == -signal.SIGKILL
        assert first.stdout is not None
        first.stdout.close()
        relay.lie = lambda ask, honest: None
        done = subprocess.run([*command, "resume"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["bad"], result["notices"]) == (0, 0)
    assert (tmp_path / "slot-b").read_bytes() == new.image
    assert result["fetched"] <= 0.2 * len(new.patch) + 16 * MIB
    assert result["skipped"] >= 20 * MIB
    assert result["peak_kib"] <= 64 * 1024


@pytest.mark.integration
def test_a_patch_with_full_prefixes_is_applied_within_64_mib(
    tmp_path: Path, pair: tuple[Packed, Packed]
) -> None:
    old, new = pair
    command = lay_out(tmp_path, old, new)
    with relaying(tmp_path / "repository", tmp_path / "s"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["fetched"] == len(new.patch)
    assert (tmp_path / "slot-b").read_bytes() == new.image
    assert result["peak_kib"] <= 64 * 1024, result
