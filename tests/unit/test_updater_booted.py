"""Which slot runs, and that it is never written: through every layer of device-mapper, and refused when the kernel does not say.

No machine with dm-verity is needed: the files of the kernel are made up as sysfs has them, and parsed by the device's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater.block_stack import Device, FileTree, stack_of
from tidewaiter_updater.boot import SlotMismatchError
from tidewaiter_updater.boot.booted import BootedSlot
from tidewaiter_updater.boot.rootdevice import root_devices
from tidewaiter_updater.device import SlotDevice, label_in_name
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.medium import Medium, SystemMedia

from tests.sim.sysfs import Sysfs

A, B, DATA = (179, 2), (179, 3), (179, 4)
VERITY, CRYPT, LINEAR, OTHER = (254, 0), (254, 1), (254, 2), (254, 3)
PATHS = {
    SlotName.A: Path("/dev/disk/by-partlabel/rootfs.A"),
    SlotName.B: Path("/dev/disk/by-partlabel/rootfs.B"),
}


class Devices(SystemMedia):
    """Port Media: paths lead to numbers, what lies below a number is read from the made-up kernel; nothing may be opened."""

    def __init__(self, kernel: FileTree, devices: dict[Path, Device]) -> None:
        super().__init__(kernel)
        self.devices = devices
        self.opened: list[Path] = []

    def identity(self, path: Path) -> tuple[int, int]:
        return self.devices[path]

    def is_block(self, path: Path) -> bool:
        return True

    def label(self, path: Path) -> str | None:
        return path.name

    def open(self, path: Path, *, writable: bool) -> Medium:
        self.opened.append(path)
        raise SlotError("opened", code="slot.io")


class Machine:
    """Two slots and a data partition on an eMMC."""

    def __init__(self, root: Path) -> None:
        self.sysfs = Sysfs(root)
        self.sysfs.partition(A, "mmcblk0p2")
        self.sysfs.partition(B, "mmcblk0p3")
        self.sysfs.partition(DATA, "mmcblk0p4")
        self.kernel = FileTree(root)
        self.media = Devices(self.kernel, {PATHS[SlotName.A]: A, PATHS[SlotName.B]: B})

    def booted(self, said: SlotName = SlotName.A) -> SlotName:
        """What the device finds."""
        witnesses = BootedSlot(
            cmdline=lambda: f"ro tidewaiter.slot={said}", kernel=self.kernel, slots=PATHS, media=self.media
        )
        return witnesses()

    def write(self, slot: SlotName) -> str:
        """The code with which a write of `slot` is refused while the other one runs; slot.io once it was opened."""
        with pytest.raises(SlotError) as caught:
            SlotDevice.open(
                PATHS[slot],
                booted=PATHS[slot.other],
                label=label_in_name(PATHS[slot]),
                media=self.media,
            )
        assert (caught.value.code == "slot.io") == bool(self.media.opened)
        return caught.value.code


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def over(*layers: Device) -> Callable[[Machine], Device]:
    """Mapped devices, each over the one before it; the first one over slot A."""

    def stack(machine: Machine) -> Device:
        below = A
        for layer in layers:
            below = machine.sysfs.mapped(layer, f"dm-{layer[1]}", below)
        return below

    return stack


LAYERS = pytest.mark.parametrize(
    "stack",
    [over(), over(VERITY), over(CRYPT, VERITY), over(LINEAR, CRYPT, VERITY)],
    ids=["bare", "verity", "verity on crypt", "verity on crypt on linear"],
)


@LAYERS
def test_the_booted_slot_is_found_through_dm_verity(
    stack: Callable[[Machine], Device], machine: Machine
) -> None:
    machine.sysfs.mount_root(stack(machine))
    assert machine.booted() is SlotName.A
    with pytest.raises(SlotMismatchError, match="nothing is written"):
        machine.booted(said=SlotName.B)


@LAYERS
def test_booted_slot_is_refused_through_dm_verity_too(
    stack: Callable[[Machine], Device], machine: Machine
) -> None:
    """Whichever of the two is named by its mapped device: a slot that is, maps or is mapped by the booted one is not opened."""
    top = stack(machine)
    machine.media.devices[PATHS[SlotName.B]] = top
    assert machine.write(SlotName.B) == "slot.booted"
    machine.media.devices.update({PATHS[SlotName.A]: top, PATHS[SlotName.B]: A})
    assert machine.write(SlotName.B) == "slot.booted"


def test_the_other_slot_is_opened_whatever_the_booted_one_is_mapped_by(machine: Machine) -> None:
    machine.media.devices[PATHS[SlotName.A]] = over(CRYPT, VERITY)(machine)
    assert machine.write(SlotName.B) == "slot.io"


def test_a_stick_with_the_labels_of_the_slots_is_never_written(machine: Machine) -> None:
    """udev gives a label's link to the device that came last; the loader would start the partition that nobody wrote."""
    machine.media.devices[PATHS[SlotName.B]] = machine.sysfs.partition((8, 2), "sda2", disk="sda")
    assert machine.write(SlotName.B) == "slot.label"
    machine.media.devices[PATHS[SlotName.A]] = over(CRYPT, VERITY)(machine)
    assert machine.write(SlotName.B) == "slot.label"


def test_two_logical_volumes_on_one_partition_are_two_slots(machine: Machine) -> None:
    for slot, device, name in ((SlotName.A, VERITY, "dm-0"), (SlotName.B, OTHER, "dm-3")):
        machine.media.devices[PATHS[slot]] = machine.sysfs.mapped(device, name, DATA)
    machine.sysfs.mount_root(VERITY)
    assert machine.booted() is SlotName.A
    assert machine.write(SlotName.B) == "slot.io"


def test_verity_with_its_hashes_on_another_partition_has_both_below_it(machine: Machine) -> None:
    machine.sysfs.mount_root(machine.sysfs.mapped(VERITY, "dm-0", A, DATA))
    assert root_devices(machine.kernel) == {VERITY, A, DATA}
    assert machine.booted() is SlotName.A


def test_a_root_over_both_slots_is_a_mismatch(machine: Machine) -> None:
    machine.sysfs.mount_root(machine.sysfs.mapped(VERITY, "dm-0", A, B))
    with pytest.raises(SlotMismatchError, match="A and B"):
        machine.booted()


def test_a_device_that_is_reached_in_two_ways_is_no_loop(machine: Machine) -> None:
    machine.sysfs.mapped(CRYPT, "dm-1", A)
    machine.sysfs.mapped(LINEAR, "dm-2", A, CRYPT)
    assert stack_of(machine.kernel, LINEAR) == {LINEAR, CRYPT, A}


def looped(machine: Machine) -> Device:
    top = over(CRYPT, VERITY)(machine)
    machine.sysfs.map(CRYPT, top)
    return top


def endless(machine: Machine) -> Device:
    return over(*((254, number) for number in range(20)))(machine)


def vanished(machine: Machine) -> Device:
    machine.sysfs.vanish(A)
    return A


def vanished_below(machine: Machine) -> Device:
    top = over(CRYPT, VERITY)(machine)
    machine.sysfs.vanish(A)
    return top


def torn_down(machine: Machine) -> Device:
    return machine.sysfs.mapped(VERITY, "dm-0")


def garbage(machine: Machine) -> Device:
    top = over(VERITY)(machine)
    (machine.sysfs.folder(A) / "dev").write_text("mmcblk0p2\n")
    return top


def empty(machine: Machine) -> Device:
    top = over(VERITY)(machine)
    (machine.sysfs.folder(A) / "dev").write_text("")
    return top


UNKNOWN = pytest.mark.parametrize(
    "stack", [looped, endless, vanished, vanished_below, torn_down, garbage, empty]
)


@UNKNOWN
def test_a_root_whose_devices_the_kernel_does_not_tell_is_a_mismatch(
    stack: Callable[[Machine], Device], machine: Machine
) -> None:
    machine.sysfs.mount_root(stack(machine))
    with pytest.raises(SlotMismatchError, match="nothing is written"):
        machine.booted()


@UNKNOWN
def test_a_slot_whose_devices_the_kernel_does_not_tell_is_not_opened(
    stack: Callable[[Machine], Device], machine: Machine
) -> None:
    machine.media.devices[PATHS[SlotName.B]] = stack(machine)
    if machine.media.devices[PATHS[SlotName.B]] == A:
        machine.media.devices[PATHS[SlotName.A]] = DATA
    assert machine.write(SlotName.B) == "slot.booted"


@UNKNOWN
def test_nothing_is_opened_when_the_devices_of_the_running_slot_are_not_told(
    stack: Callable[[Machine], Device], machine: Machine
) -> None:
    machine.media.devices[PATHS[SlotName.A]] = stack(machine)
    assert machine.write(SlotName.B) == "slot.booted"


def test_an_overlay_is_followed_to_the_slot_below_it(machine: Machine) -> None:
    top = over(VERITY)(machine)
    machine.sysfs.mount(
        f"25 1 {top[0]}:{top[1]} / /run/lower\\040dir ro shared:1 - erofs /dev/dm-0 ro",
        "28 1 0:30 / / rw shared:1 - overlay overlay rw,lowerdir=/run/lower\\040dir,upperdir=/run/up,workdir=/run/work",
    )
    assert root_devices(machine.kernel) == {VERITY, A}


def test_a_root_without_a_device_of_its_own_is_followed_by_its_name(machine: Machine) -> None:
    over(VERITY)(machine)
    link = machine.sysfs.root / "dev/mapper/root"
    link.parent.mkdir(parents=True)
    link.symlink_to("../dm-0")
    machine.sysfs.mount("28 1 0:30 / / ro shared:1 - btrfs /dev/mapper/root ro")
    assert root_devices(machine.kernel) == {VERITY, A}


@pytest.mark.parametrize(
    "line",
    [
        "28 1 0:30 / / rw - tmpfs tmpfs rw",
        "28 1 0:30 / / rw - overlay overlay rw,lowerdir=/",
        "28 1 0:30 / / rw - overlay overlay rw",
        "28 1 0:30 / / rw - btrfs /dev/mapper/gone rw",
        "28 1 179:2 / /mnt rw - ext4 /dev/mmcblk0p2 rw",
        "28 1 here / / rw - ext4 /dev/mmcblk0p2 rw",
        "no mount at all",
    ],
)
def test_a_root_that_is_nowhere_is_a_mismatch(line: str, machine: Machine) -> None:
    machine.sysfs.mount(line)
    with pytest.raises(SlotMismatchError, match="nothing is written"):
        root_devices(machine.kernel)


def test_a_file_that_plays_a_slot_has_nothing_below_it(tmp_path: Path) -> None:
    path = tmp_path / "slot-a"
    path.write_bytes(b"")
    assert SystemMedia().stack(path) == {SystemMedia().identity(path)}
