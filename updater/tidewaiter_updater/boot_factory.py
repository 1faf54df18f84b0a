"""What an image builder or the factory puts where the boot environment is: slot A committed, both slots may be booted.

`python3 -m tidewaiter_updater.boot_factory --backend grub DIRECTORY` writes env_a and env_b, for systemd-boot into
EFI/tidewaiter of the partition, for U-Boot both copies into an image of the partition `env` (which `fw_setenv` and U-Boot read).
Without this record a device starts DEGRADED boot.env-invalid. Exit codes: 0 written, 1 could not be written, 2 usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tidewaiter_core.model import SlotName
from tidewaiter_core.settings import BootBackend

from tidewaiter_updater.boot import envcopy, grubenv
from tidewaiter_updater.boot.envcopy import COPY_OFFSETS, to_variables
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE
from tidewaiter_updater.boot.grub import FILES
from tidewaiter_updater.model import BootEnv

PARTITION_BYTES = 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="boot_factory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", type=BootBackend, choices=list(BootBackend), required=True)
    parser.add_argument("--epoch", type=int, default=0, help="security epoch of the image in both slots")
    parser.add_argument(
        "place", type=Path, help="directory (grub), partition's directory (systemd-boot), else image file"
    )
    arguments = parser.parse_args(argv)
    env = BootEnv(committed=SlotName.A, ok_a=True, ok_b=True, epoch=arguments.epoch)
    try:
        write(arguments.backend, arguments.place, env)
    except OSError as err:
        sys.stderr.write(f"boot_factory: {err.filename}: cannot be written: {err.strerror}\n")
        return 1
    return 0


def write(backend: BootBackend, place: Path, env: BootEnv) -> None:
    """Write the record `env`, as if nothing had been there before; OSError."""
    variables = to_variables(env)
    if backend in (BootBackend.SIMULATED, BootBackend.UBOOT):
        with place.open("wb") as file:
            for flag, offset in enumerate(COPY_OFFSETS):
                file.seek(offset)
                file.write(envcopy.encode(variables, flag=flag))
            file.truncate(PARTITION_BYTES)
        return
    if backend is BootBackend.SYSTEMD_BOOT:
        (place / ENTRIES).mkdir(parents=True, exist_ok=True)
        place = place / PRIVATE
    place.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(FILES):
        (place / name).write_bytes(grubenv.encode(variables, number=number))


if __name__ == "__main__":
    sys.exit(main())
