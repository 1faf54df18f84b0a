"""Simulated storage: block devices and a small file system that know what a power cut may leave of them.

Each operation of the updater is one step of a log. At each step there is a durable state and an ordered list of pending units
(one sector, one piece of file content, one change of names); what storage may hold after a cut is the durable state plus any
subset of the units, one of which may also be torn or unreadable.
"""

from tests.sim.storage.content import Content, fingerprint
from tests.sim.storage.devices import BlockDevice, EnvDevice, SlotMedia, SlotMedium, Storage
from tests.sim.storage.disk import SimDisk
from tests.sim.storage.log import Log, Point
from tests.sim.storage.trees import SimTrees
from tests.sim.storage.units import SECTOR_BYTES, Unit

__all__ = [
    "SECTOR_BYTES",
    "BlockDevice",
    "Content",
    "EnvDevice",
    "Log",
    "Point",
    "SimDisk",
    "SimTrees",
    "SlotMedia",
    "SlotMedium",
    "Storage",
    "Unit",
    "fingerprint",
]
