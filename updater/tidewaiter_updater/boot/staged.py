"""Kernel images that lie on the EFI system partition and are not in force: complete ones, and those that `staging` began.

The name holds all that ARM has to know, so that no other state has to survive: transaction, slot, version and SHA-256 of the
signed release. systemd-boot does not look into this folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from tidewaiter_core.model import Sha256, SlotName

from tidewaiter_updater.boot.esp import PRIVATE, Esp
from tidewaiter_updater.boot.ukiname import UkiName

_NAME: Final = re.compile(
    r"(?P<txn>[0-9a-f]{16})-(?P<sha256>[0-9a-f]{64})-tidewaiter-(?P<version>[0-9A-Za-z.+-]{1,64})\.(?P<slot>[AB])\.uki",
    re.ASCII,
)


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


def is_staged(esp: Esp, uki: StagedUki) -> bool:
    """Whether the image waits for ARM, whole, by reading all of it from the medium."""
    return uki.file_name in esp.files(PRIVATE) and esp.digest(uki.path) == uki.sha256


def clear(esp: Esp, slot: SlotName, *, keep: Collection[str] = ()) -> None:
    """Remove what attempts left for the slot, unless another name may lead to the same clusters.

    Args:
        keep: Names below PRIVATE that stay.
    """
    for name in removable(esp, slot, keep=keep):
        esp.remove(f"{PRIVATE}/{name}")


def removable(esp: Esp, slot: SlotName, *, keep: Collection[str] = ()) -> dict[str, int]:
    """What `clear` would remove: names below PRIVATE, and bytes."""
    found = {}
    for name, size in esp.files(PRIVATE).items():
        old = _parse(name)
        is_ours = old is not None and old.slot is slot and name not in keep
        if old is not None and is_ours and not esp.others_with(old.stem, name):
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
