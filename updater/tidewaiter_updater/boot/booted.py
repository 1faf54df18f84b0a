"""Which slot this system was booted from: what the kernel command line says and where `/` comes from have to agree.

The third witness, the boot environment, is asked by `phases.classify`. Any disagreement degrades the device: nothing is written,
because the slot that would be written may be the one that runs.

Source: update-engine.md section 7 (a booted slot once misdetected: HAOS #932).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from tidewaiter_core.model import SlotName

from tidewaiter_updater.block_stack import Device, Kernel
from tidewaiter_updater.boot import SlotMismatchError
from tidewaiter_updater.boot.rootdevice import root_devices
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.medium import SYSTEM_MEDIA, Media

Said = TypeVar("Said")

_PARAMETER: Final = "tidewaiter.slot="


def slot_of_cmdline(cmdline: str) -> SlotName:
    """The slot that the boot loader chose, by the kernel command line; SlotMismatchError unless it names exactly one."""
    named = [word.removeprefix(_PARAMETER) for word in cmdline.split() if word.startswith(_PARAMETER)]
    if len(named) != 1 or named[0] not in ("A", "B"):
        raise SlotMismatchError(
            f"kernel command line: expected exactly one {_PARAMETER}A or =B, found {named or 'none'}; "
            "the booted slot is unknown, nothing is written"
        )
    return SlotName(named[0])


class BootedSlot:
    """Asks both witnesses each time it is called."""

    def __init__(
        self,
        *,
        cmdline: Callable[[], str],
        kernel: Kernel,
        slots: Mapping[SlotName, Path],
        media: Media = SYSTEM_MEDIA,
    ) -> None:
        self._cmdline = cmdline
        self._kernel = kernel
        self._slots = slots
        self._media = media

    def __call__(self) -> SlotName:
        """The booted slot.

        Raises:
            SlotMismatchError: The witnesses do not agree, or one of them does not say.
        """
        named = slot_of_cmdline(self._asked(self._cmdline))
        below = root_devices(self._kernel)
        identities = self._asked(
            lambda: {slot: self._media.identity(path) for slot, path in self._slots.items()}
        )
        found = [slot for slot, device in identities.items() if device in below]
        if found != [named]:
            raise SlotMismatchError(
                f"the kernel command line names slot {named}, / comes from {_names(below)}, which is "
                f"{' and '.join(found) or 'neither slot'} "
                f"(A is {_name(identities[SlotName.A])}, B is {_name(identities[SlotName.B])}); nothing is written"
            )
        return named

    @staticmethod
    def _asked(witness: Callable[[], Said]) -> Said:
        try:
            return witness()
        except (OSError, SlotError) as err:
            raise SlotMismatchError(
                f"a witness of the booted slot cannot be asked: {err}; the booted slot is unknown, nothing is written"
            ) from err


def _names(devices: frozenset[Device]) -> str:
    return ", ".join(_name(device) for device in sorted(devices))


def _name(device: Device) -> str:
    return f"{device[0]}:{device[1]}"
