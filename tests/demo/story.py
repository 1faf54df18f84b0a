"""The five steps of the main job. Each function is one step: what a person does, what must be seen, in that order."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidewaiter_core.audit import read_records
from tidewaiter_core.payload import IndexReader, Method

from tests.demo.timeline import POLL_S, Step, StepFailedError, Timeline, expect
from tests.demo.watch import PhaseWatch
from tests.sim.machine import Machine
from tests.sim.plant import FACTORY_VERSION, Plant, ReleasePlan

MAIN = "INJ-000101"
SECOND = "INJ-000102"

PLANS = [
    ReleasePlan(version="1.1.0", sequence=2),
    # The broken one: the panel application that it says must run never comes up.
    ReleasePlan(
        version="1.2.0", sequence=3, settings={"updater": {"health_units": ["injector-panel.service"]}}
    ),
    ReleasePlan(version="1.3.0", sequence=4),
    ReleasePlan(version="1.4.0", sequence=5),
    # Nothing to reuse from the slots: all of it has to come over the line.
    ReleasePlan(version="1.5.0", sequence=6, rewrite_every=1),
]
CLOSED = {"FINISHED", "ERROR", "CANCELED"}
DENIED_REASON = "interlock"
IN_TRIAL = {"ARMED", "TRIAL", "HEALTH"}
_STAGED = {"STAGED", "WAIT_WINDOW", "ARMED"}
_REFUSALS = re.compile(r"\b(?:source|trust|payload)\.[a-z-]+")
PATIENCE_S = 180.0
"""How long a step may take on a loaded machine before it counts as failed."""
QUIET_S = 6.0
"""How long an armed or injecting injector is watched for a reboot that must not come."""
LINK_KIB_PER_S = 1024
"""Site bandwidth cap in the power-cut step: slow enough to be cut in the middle."""
REFETCH_LIMIT_BYTES = 16 << 20


class Story:
    """Runs the steps on a `Plant`; every claim in a step's detail is a figure that was just measured."""

    def __init__(self, plant: Plant, timeline: Timeline) -> None:
        self.plant = plant
        self.timeline = timeline
        self.watches: dict[str, PhaseWatch] = {}
        self.releases: dict[str, int] = {}

    # -- setting ---

    def prepare(self) -> None:
        """Manufacturer's side, releases, two devices that run the factory release."""
        say = self.timeline.say
        say("factory PKI, TUF repository with offline roles, server with client certificates")
        self.plant.open()
        say(f"server process {self.plant.enterprise.pid} listens for devices and for people", lane="server")
        count = len(PLANS) + 1
        size = self.plant.image_bytes >> 20
        say(
            f"building {count} root file systems of {size} MiB with mke2fs from real files, indexing, compressing, signing"
        )
        self.plant.build(PLANS, done=lambda plan: self.timeline.progress(f"release {plan.version} is built"))
        for version in ("1.1.0", "1.2.0"):
            self.releases[version] = self.plant.publish(version)
        for serial in (MAIN, SECOND):
            machine = self.plant.add_device(serial, watcher=self._watcher(serial))
            machine.power_on()
            self.watches[serial] = PhaseWatch(machine, self.timeline)
        for serial, watch in self.watches.items():
            self.timeline.wait(f"{serial} answers", lambda w=watch: w.phase == "IDLE", timeout_s=PATIENCE_S)  # type: ignore[misc]

    def pids(self) -> dict[str, int]:
        return {
            f"{serial} {name}": pid
            for serial, machine in self.plant.machines.items()
            for name, pid in machine.pids().items()
        }

    # -- steps ---

    def update_commits(self, step: Step) -> None:
        """A release is assigned, installed into the other slot, booted, found healthy, committed, reported."""
        machine, watch = self.plant.machines[MAIN], self.watches[MAIN]
        before = machine.booted
        deployment = self._deploy("1.1.0", MAIN)
        self._until(
            watch,
            "the new release commits",
            lambda: self._state(MAIN, deployment) in CLOSED,
            timeout_s=PATIENCE_S,
        )
        state = self._state(MAIN, deployment)
        expect(
            state == "FINISHED",
            f"the server's action is {state}, expected FINISHED: {self._report(MAIN, deployment)}",
        )
        expect(machine.version() == "1.1.0", f"the device runs {machine.version()}, expected 1.1.0")
        expect(machine.booted != before, f"the device still runs from slot {before}")
        story = ["update.installing", "update.staged", "update.armed", "update.committed"]
        audited = [kind for kind in self._audited(machine) if kind in story]
        expect(audited == story, f"the audit chain says {audited}, expected {story}")
        step.detail = f"slot {before} → {machine.booted}, release {FACTORY_VERSION} → 1.1.0, committed after health checks"

    def start_broken_release(self) -> int:
        """Assign the broken release to the second device; it spends its health deadline while other steps go on."""
        self.timeline.say(
            "meanwhile the second device gets release 1.2.0, whose panel application never comes up"
        )
        return self._deploy("1.2.0", SECOND)

    def broken_release_rolls_back(self, step: Step, deployment: int) -> None:
        """Health is red in the new slot until the deadline: the old slot boots again, and the reason reaches the server."""
        machine, watch = self.plant.machines[SECOND], self.watches[SECOND]
        self._until(
            watch,
            "health deadline passes",
            lambda: self._state(SECOND, deployment) in CLOSED,
            timeout_s=PATIENCE_S,
        )
        report = self._report(SECOND, deployment)
        expect(self._state(SECOND, deployment) == "ERROR", f"the server's action is not ERROR: {report}")
        expect(
            machine.version() == FACTORY_VERSION,
            f"the device runs {machine.version()}, expected {FACTORY_VERSION}",
        )
        audited = self._audited(machine)
        expect("update.armed" in audited, f"the new slot was never tried: {audited}")
        last = watch.status.get("last") or {}
        expect("health" in last.get("code", ""), f"the reason is {last}, expected a health code")
        step.detail = f"slot {machine.booted} with {FACTORY_VERSION} runs again; reported: {last['code']}: {last['text']}"

    def tampered_release_refused(self, step: Step) -> None:
        """One flipped byte in a pack, then one forged metadata file: neither reaches a bootable slot."""
        machine, watch = self.plant.machines[MAIN], self.watches[MAIN]
        boots, version = machine.boots, machine.version()
        self.releases["1.3.0"] = self.plant.publish("1.3.0")
        pack = self._target_file("1.3.0", "pack.twpk")
        offset = self._fetched_byte(new="1.3.0", known=(FACTORY_VERSION, version))
        with _flipped(pack, offset):
            self.timeline.say(
                f"byte {offset} of the published pack is flipped on disk", lane="server", kind="cut"
            )
            pack_code = self._refusal(watch, self.plant.enterprise.deploy(self.releases["1.3.0"], MAIN))
        # A new release means new delegated metadata, which the device has not cached yet.
        self.releases["1.4.0"] = self.plant.publish("1.4.0")
        metadata = max(
            (self.plant.enterprise.repository / "metadata").glob("*.os.json"),
            key=lambda p: int(p.name.split(".")[0]),
        )
        with _forged(metadata):
            self.timeline.say(
                f"the delegated metadata {metadata.name} is forged to name another hash",
                lane="server",
                kind="cut",
            )
            metadata_code = self._refusal(watch, self.plant.enterprise.deploy(self.releases["1.4.0"], MAIN))
        expect(machine.boots == boots, f"the device booted {machine.boots - boots} times during the attack")
        expect(
            machine.version() == version,
            f"the device runs {machine.version()} after the attack, expected {version}",
        )
        step.detail = (
            f"flipped byte: {pack_code}; forged metadata: {metadata_code}; still release {version}, no reboot"
        )

    def injection_defers_update(self, step: Step) -> None:
        """Armed, then injecting: staged but nothing reboots. Idle again: it goes on by itself."""
        machine, watch, injector = self.plant.machines[MAIN], self.watches[MAIN], self.plant.injectors[MAIN]
        injector.do("load")
        injector.wait_state("READY")
        injector.do("arm")
        injector.wait_state("ARMED")
        self.timeline.say("a clinician arms the injector", lane=MAIN)
        boots = machine.boots
        deployment = self.plant.enterprise.deploy(self.releases["1.4.0"], MAIN)
        self._until(
            watch,
            "the update is staged and waits",
            lambda: self._waits_for_interlock(watch),
            timeout_s=PATIENCE_S,
        )
        reasons = ", ".join(watch.status["waiting_for"])
        self._nothing_reboots(machine, boots, "armed")
        injector.do("start")
        injector.wait_state("INJECTING")
        self.timeline.say(f"the injection runs; the update waits for: {reasons}", lane=MAIN)
        self._nothing_reboots(machine, boots, "injecting")
        injector.do("abort")
        self.timeline.wait(
            "pressure falls", lambda: injector.state()["pressure_kpa"] < 20, timeout_s=PATIENCE_S
        )
        injector.do("disarm")
        injector.wait_state("IDLE")
        self.timeline.say("the injection is over, the injector is idle", lane=MAIN)
        self._until(
            watch, "the update goes on", lambda: self._state(MAIN, deployment) in CLOSED, timeout_s=PATIENCE_S
        )
        expect(
            self._state(MAIN, deployment) == "FINISHED",
            f"the update failed afterwards: {self._report(MAIN, deployment)}",
        )
        expect(machine.version() == "1.4.0", f"the device runs {machine.version()}, expected 1.4.0")
        step.detail = f"{2 * QUIET_S:.0f} s armed and injecting: no reboot ({reasons}); idle: 1.4.0 committed"

    def power_cut_resumes(self, step: Step) -> None:
        """Updater and agent die by SIGKILL in the middle of the write; what was written is not fetched again."""
        machine, watch = self.plant.machines[MAIN], self.watches[MAIN]
        machine.site("bandwidth", {"network": {"max_down_kib_per_s": LINK_KIB_PER_S}})
        machine.kill("agent")  # the cap is read at start
        self.timeline.say(f"hospital IT caps the line at {LINK_KIB_PER_S} KiB/s", lane=MAIN)
        deployment = self._deploy("1.5.0", MAIN)
        half = "half of the bytes are here"
        self._until(watch, half, lambda: self._fetched_ratio(watch) > 0.5, timeout_s=PATIENCE_S)
        before = dict(watch.status["bytes"])
        machine.kill("updater", "agent")
        self.timeline.say(
            f"SIGKILL for updater and agent after {before['fetched'] / 1e6:.1f} MB", lane=MAIN, kind="cut"
        )
        watch.status, watch.phases[:] = {}, []
        self._until(watch, "the rest is fetched", lambda: watch.phase in _STAGED, timeout_s=PATIENCE_S)
        after = dict(watch.status["bytes"])
        self._until(
            watch,
            "the new release commits",
            lambda: self._state(MAIN, deployment) in CLOSED,
            timeout_s=PATIENCE_S,
        )
        expect(machine.version() == "1.5.0", f"the device runs {machine.version()}, expected 1.5.0")
        total, needed = before["fetched"] + after["fetched"], before["expected_fetch"]
        again = max(0, total - needed)
        expect(
            again <= REFETCH_LIMIT_BYTES,
            f"{again} bytes were fetched twice, allowed are {REFETCH_LIMIT_BYTES}",
        )
        expect(
            after["fetched"] < needed * 0.75,
            f"after the cut {after['fetched']} of {needed} bytes were fetched: no resume",
        )
        step.detail = (
            f"{before['fetched'] / 1e6:.1f} MB before, {after['fetched'] / 1e6:.1f} MB after the cut, "
            f"{needed / 1e6:.1f} MB needed in all, {again / 1e6:.2f} MB fetched twice"
        )

    # -- looking ---

    def _watcher(self, serial: str) -> Callable[[str, str], None]:
        kinds = {"boot": "boot", "power-cut": "cut", "killed": "cut", "restart": "note", "reboot": "note"}
        return lambda event, detail: self.timeline.say(
            f"{event} {detail}", lane=serial, kind=kinds.get(event, "note")
        )

    def _deploy(self, version: str, serial: str) -> int:
        if version not in self.releases:
            self.releases[version] = self.plant.publish(version)
        self.watches[serial].forget()
        self.timeline.say(f"release {version} is assigned to {serial}", lane="server")
        return self.plant.enterprise.deploy(self.releases[version], serial)

    def _state(self, serial: str, deployment: int) -> str:
        return str(self.plant.enterprise.action(serial, deployment)["state"])

    def _report(self, serial: str, deployment: int) -> Any:
        action = self.plant.enterprise.action(serial, deployment)
        return action.get("history", action)

    def _until(
        self, watch: PhaseWatch, what: str, condition: Callable[[], bool], *, timeout_s: float
    ) -> None:
        self.timeline.wait(what, condition, timeout_s=timeout_s, show=watch.line)

    def _refusal(self, watch: PhaseWatch, deployment: int) -> str:
        """Stable code with which the update was refused, as the server learned it; the action is closed afterwards."""
        watch.forget()
        found: list[str] = []

        def refused() -> bool:
            found[:] = _REFUSALS.findall(json.dumps(self._report(MAIN, deployment)))
            return bool(found)

        self._until(watch, "the release is refused", refused, timeout_s=PATIENCE_S)
        tried = IN_TRIAL & set(watch.phases)
        expect(not tried, f"a tampered release was booted: {watch.phases}")
        if self._state(MAIN, deployment) not in CLOSED:
            self.plant.enterprise.api("POST", f"/deployments/{deployment}/cancel")
            closed = "the cancel is done"
            self._until(watch, closed, lambda: self._state(MAIN, deployment) in CLOSED, timeout_s=PATIENCE_S)
        text = (watch.status.get("last") or {}).get("text", "") if found[0].startswith("source") else ""
        self.timeline.say(f"refused: {found[0]} {text}".strip(), lane=MAIN, kind="good")
        return found[0]

    def _waits_for_interlock(self, watch: PhaseWatch) -> bool:
        return any(DENIED_REASON in reason for reason in watch.status.get("waiting_for") or [])

    def _nothing_reboots(self, machine: Machine, boots: int, state: str) -> None:
        end = time.monotonic() + QUIET_S
        while time.monotonic() < end:
            expect(machine.boots == boots, f"the device rebooted while the injector was {state}")
            time.sleep(POLL_S)

    def _fetched_ratio(self, watch: PhaseWatch) -> float:
        amount = watch.status.get("bytes") or {}
        if watch.phase != "TRANSFER" or not amount.get("expected_fetch"):
            return 0.0
        return float(amount["fetched"]) / float(amount["expected_fetch"])

    def _audited(self, machine: Machine) -> list[str]:
        """Kinds of the updater's audit records, in order: complete, where a sampled phase may have been missed."""
        records = read_records(machine.home / "data/audit/updater")
        return [str(json.loads(record)["kind"]) for record in records]

    def _fetched_byte(self, *, new: str, known: tuple[str, ...]) -> int:
        """Offset in the pack of `new` of a byte that a device with the `known` releases has to fetch."""
        held: set[bytes] = set()
        for version in known:
            with _opened_index(self.plant.build_dir(version) / "index.twci") as index:
                held |= {index.chunk_hash(number) for number in range(index.header.chunk_count)}
        with _opened_index(self.plant.build_dir(new) / "index.twci") as index:
            for number in range(index.header.chunk_count // 2, index.header.chunk_count):
                unit = index.unit(number)
                if unit.method in (Method.ZSTD, Method.RAW) and index.chunk_hash(number) not in held:
                    return unit.offset + unit.stored_bytes // 2
        raise StepFailedError(f"release {new} has no chunk that is not in {' or '.join(known)} too")

    def _target_file(self, version: str, name: str) -> Path:
        directory = self.plant.enterprise.repository / f"targets/releases/injector/{version}"
        found = sorted(directory.glob(f"*.{name}"))
        if not found:
            raise StepFailedError(f"the repository holds no {name} of release {version}")
        return found[0]


@contextmanager
def _opened_index(path: Path) -> Iterator[IndexReader]:
    with path.open("rb") as file:
        yield IndexReader(lambda offset, length: os.pread(file.fileno(), length, offset), path.stat().st_size)


class _flipped:
    """One byte of a file is flipped while the block runs."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._offset = path, offset

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *unused: object) -> None:
        self._flip()

    def _flip(self) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            byte = file.read(1)[0]
            file.seek(self._offset)
            file.write(bytes([byte ^ 0x40]))


class _forged:
    """The first SHA-256 in a metadata file is another one while the block runs: well-formed, but not what was signed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._original = path.read_bytes()

    def __enter__(self) -> None:
        position = self._original.index(b'"sha256"') + len(b'"sha256"')
        position = self._original.index(b'"', position) + 1
        digit = b"0" if self._original[position : position + 1] != b"0" else b"1"
        self._path.write_bytes(self._original[:position] + digit + self._original[position + 1 :])

    def __exit__(self, *unused: object) -> None:
        self._path.write_bytes(self._original)
