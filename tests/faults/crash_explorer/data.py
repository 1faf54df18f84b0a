"""The product's data on the simulated device: the root program that makes its sets, and a product that writes into them.

A set holds a `protocol`, which the migration program rewrites, and notes. The product writes a note whenever it runs on a
committed release, and what it synced is promised: it has to be in the set of whatever release is committed later, because
every set is a copy of the one before it. The earlier set keeps what it had as long as a slot may boot that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from tidewaiter_core.clock import Clock, parse_utc
from tidewaiter_core.disk import Disk
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.data_sets import DeviceDataSets, Progress
from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.migrate import Boot, Migration
from tidewaiter_updater.model import BootEnv, DataState, RunningRelease
from tidewaiter_updater.set_store import SetStore

from tests.faults.crash_explorer.releases import Made
from tests.faults.crash_explorer.watch import Watch
from tests.sim.device import Violation
from tests.sim.storage import Content, SimDisk, SimTrees, Storage

SETS = Path("/data/sets")
KEEP = timedelta(days=30)
NOTES_LIMIT = 4
"""More of them would only make every device different from every other one."""

Sets = Callable[[Path, SimTrees, Disk], SetStore]


def empty_partition(content: Content) -> Content:
    """`content` with a data partition on which nobody wrote yet."""
    return {**content, ("directory", str(SETS.parent)): b"", ("directory", str(SETS)): b""}


def protocol(schema: int) -> bytes:
    """What the product's one file says in a set of that schema."""
    return f"protocol of schema {schema}\n".encode()


def note(number: int) -> tuple[str, bytes]:
    """Name and content of a note."""
    return f"note-{number}", f"note {number}\n".encode()


class ToyProgram:
    """Port Programs: the migration program of the new release."""

    def __init__(self, disk: Disk, *, fails: bool) -> None:
        self._disk = disk
        self._fails = fails

    def run(self, folder: Path, *, made_from: int | None, schema: int) -> None:
        fd = self._disk.create(folder / "protocol")
        self._disk.truncate(fd, 0)
        self._disk.write(fd, protocol(schema))
        self._disk.close(fd)
        if self._fails and made_from is not None:
            raise DataStepError("the migration program failed", code="data.program")


class DataPartition:
    """The sets during one boot."""

    def __init__(
        self,
        storage: Storage,
        watch: Watch,
        *,
        trees: SimTrees,
        sets: Sets,
        running: RunningRelease,
        control: BootControl,
        booted: SlotName,
        boot_id: str,
        clock: Clock,
        fails: bool,
    ) -> None:
        if running.data is None:
            raise RuntimeError("every image here keeps data")
        self._disk = SimDisk(storage)
        self._watch = watch
        self._data: Data = running.data
        self._built_utc = parse_utc(running.built_utc)
        self._store = sets(SETS, trees, self._disk)
        self._control = control
        self._booted = booted
        self._boot_id = boot_id
        self._clock = clock
        self._program = ToyProgram(self._disk, fails=fails)
        self._progress: Progress | None = None
        self._asked = False
        self.port = DeviceDataSets(
            self._store,
            running.data,
            boot=control,
            boot_id=boot_id,
            progress=lambda: self._progress,
            ask=self._ask,
            clock=clock,
            keep=KEEP,
        )

    def boot(self) -> None:
        """tidewaiter-migrate boot, then the product."""
        try:
            self._migration().prepare()
        except DataStepError as err:
            self._progress = Progress(
                boot_id=self._boot_id, state=DataState.FAILED, code=err.code, detail=str(err)
            )
            if not self._is_trial():
                raise Violation(f"the committed release has no data: {err.code}: {err}") from err
            return
        check_set(self._found(), self._data.writes, self._watch.facts.notes, f"slot {self._booted} starts")
        if not self._is_trial():
            self.write()

    def settle(self) -> bool:
        """tidewaiter-migrate settle, if the updater asked for it."""
        asked, self._asked = self._asked, False
        if asked:
            self._migration().settle()
        return asked

    def write(self) -> None:
        """The product writes a note and makes it durable."""
        number = whole_notes(self._found()) + 1
        if number > NOTES_LIMIT:
            return
        name, text = note(number)
        fd = self._disk.create(self._folder / name)
        self._disk.truncate(fd, 0)  # a cut may have left half a note
        self._disk.write(fd, text)
        self._disk.sync(fd)
        self._disk.close(fd)
        self._disk.sync_directory(self._folder)
        self._watch.noted(self._data.writes, number)

    def _found(self) -> dict[str, bytes]:
        paths = [self._folder / entry.name for entry in self._disk.entries(self._folder)]
        return {path.name: self._disk.read(path, 1000) for path in paths}

    @property
    def _folder(self) -> Path:
        return self._store.data(self._data.writes)

    def _is_trial(self) -> bool:
        env = self._control.read()
        return env is not None and env.committed is not self._booted

    def _migration(self) -> Migration:
        boot = Boot(data=self._data, built_utc=self._built_utc, env=self._control.read(), booted=self._booted)
        return Migration(self._store, boot, programs=self._program, clock=self._clock, keep=KEEP)

    def _ask(self) -> None:
        self._asked = True


def check_set(found: Mapping[str, bytes], schema: int, notes: Mapping[int, int], who: str) -> None:
    """A set that a release reads is whole, and holds what was promised in it or in the one it was made from."""
    if found.get("protocol") != protocol(schema):
        raise Violation(f"{who} on set {schema}, whose protocol is {found.get('protocol')!r}")
    promised = max((number for one, number in notes.items() if one <= schema), default=0)
    for number in range(1, promised + 1):
        name, text = note(number)
        if found.get(name) != text:
            raise Violation(f"{who} on set {schema} without {name}, which was on storage: {sorted(found)}")


def check_data(
    content: Content, env: BootEnv, held: Mapping[SlotName, Made | None], notes: Mapping[int, int]
) -> None:
    """After a cut: the set of each release that may boot without another data step is there and whole."""
    if not any(name.isdecimal() for name in sets_in(content)):
        return  # a new device, or one whose product has no data: nothing was ever promised
    slots = {env.committed}
    if env.trial is None:
        slots |= {slot for slot in SlotName if env.is_ok(slot)}
    for slot in slots:
        made = held[slot]
        if made is not None:
            schema = made.release.data.writes
            who = f"slot {slot} may start"
            if ("file", f"{SETS}/{schema}/COMPLETE") not in content:
                raise Violation(f"{who}, set {schema} is not there: {sets_in(content)}")
            check_set(files_of(content, schema), schema, notes, who)


def files_of(content: Content, schema: int) -> dict[str, bytes]:
    """What a set holds."""
    folder = f"{SETS}/{schema}/data/"
    return {
        key[1].removeprefix(folder): value
        for key, value in content.items()
        if key[0] == "file" and key[1].startswith(folder)
    }


def notes_in(content: Content) -> dict[int, int]:
    """How many notes the sets hold that are complete."""
    complete = [int(name) for name in sets_in(content) if name.isdecimal()]
    complete = [schema for schema in complete if ("file", f"{SETS}/{schema}/COMPLETE") in content]
    return {schema: whole_notes(files_of(content, schema)) for schema in complete}


def whole_notes(found: Mapping[str, bytes]) -> int:
    """The notes from the first one on that are there and whole."""
    number = 0
    while found.get(note(number + 1)[0]) == note(number + 1)[1]:
        number += 1
    return number


def sets_in(content: Content) -> list[str]:
    """Names of what lies in the directory of the sets."""
    return sorted(
        key[1].removeprefix(f"{SETS}/")
        for key in content
        if key[0] == "directory" and key[1].startswith(f"{SETS}/") and key[1].count("/") == 3
    )
