"""Kernel images that lie on the EFI system partition, complete, and are not in force.

The name holds all that ARM has to know, so that no other state has to survive: transaction, slot, version and SHA-256 of the
signed release. systemd-boot does not look into this folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import Sha256, SlotName

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.esp import PRIVATE, Esp
from tidewaiter_updater.boot.ukiname import UkiName

_NAME: Final = re.compile(
    r"(?P<txn>[0-9a-f]{16})-(?P<sha256>[0-9a-f]{64})-tidewaiter-(?P<version>[0-9A-Za-z.+-]{1,64})\.(?P<slot>[AB])\.uki",
    re.ASCII,
)
_PART: Final = "part-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedUki:
    """One image that waits for ARM."""

    txn: str
    sha256: Sha256
    version: str
    slot: SlotName

    @property
    def file_name(self) -> str:
        return f"{self.txn}-{self.sha256}-{self.stem}.uki"

    @property
    def stem(self) -> str:
        """What all names of the image have in common."""
        return UkiName(version=self.version, slot=self.slot).stem

    @property
    def path(self) -> str:
        """Below the root of the partition."""
        return f"{PRIVATE}/{self.file_name}"


def find_staged(esp: Esp, *, slot: SlotName, txn: str) -> StagedUki | None:
    """The image that was staged for a transaction."""
    found = (_parse(name) for name in esp.files(PRIVATE))
    return next((one for one in found if one is not None and (one.slot, one.txn) == (slot, txn)), None)


def stage(esp: Esp, uki: StagedUki, pieces: Iterable[bytes], *, length: int) -> None:
    """Write an image whole, read it back, and give it its name. One that is there already and right is left alone.

    Raises:
        BootEnvError: No space for it and the copy that COMMIT makes, or the medium does not hold what was written.
        TidewaiterError: What `pieces` raises; what arrived until then is removed.
    """
    if is_staged(esp, uki):
        clear(esp, uki.slot, keep=uki)
        return
    clear(esp, uki.slot)
    if (free := esp.free_bytes()) < 2 * length:
        raise BootEnvError(
            f"{esp.name}: {free} bytes are free, the kernel image for slot {uki.slot} needs {length} twice; not staged",
            code="update.no-space",
        )
    part = f"{PRIVATE}/{esp.free_name(_PART + uki.stem)}"
    try:
        esp.write(part, pieces)
        if (found := esp.digest(part)) != uki.sha256:
            raise BootEnvError(f"{part}: expected SHA-256 {uki.sha256}, the medium gives {found}; not staged")
    except TidewaiterError:
        with contextlib.suppress(BootEnvError):
            esp.remove(part)
        raise
    esp.rename(part, uki.path)


def is_staged(esp: Esp, uki: StagedUki) -> bool:
    """Whether the image waits for ARM, whole, by reading all of it from the medium."""
    return uki.file_name in esp.files(PRIVATE) and esp.digest(uki.path) == uki.sha256


def clear(esp: Esp, slot: SlotName, *, keep: StagedUki | None = None) -> None:
    """Remove what attempts left for the slot, unless another name may lead to the same clusters."""
    for name in removable(esp, slot, keep=keep):
        esp.remove(f"{PRIVATE}/{name}")


def removable(esp: Esp, slot: SlotName, *, keep: StagedUki | None = None) -> dict[str, int]:
    """What `clear` would remove: names below PRIVATE, and bytes."""
    found = {}
    for name, size in esp.files(PRIVATE).items():
        old = _parse(name)
        if old is not None and old.slot is slot and old != keep:
            stem = old.stem
        elif name.startswith(_PART) and name.rpartition(".")[0].endswith(f".{slot}"):
            stem = name.removeprefix(_PART).rpartition(".")[0]
        else:
            continue
        if not esp.others_with(stem, name):
            found[name] = size
    return found


def _parse(name: str) -> StagedUki | None:
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return StagedUki(
        txn=found["txn"],
        sha256=Sha256(found["sha256"]),
        version=found["version"],
        slot=SlotName(found["slot"]),
    )
