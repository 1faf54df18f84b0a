"""The shipped U-Boot script in the real U-Boot (Debian's build for QEMU's ARM machine), emulated, about a second a boot.

That build keeps its environment in CFI flash, not in two copies on a block device; so variables come in by that flash, and
`saveenv`, which the flash of QEMU 7.2 refuses half-way, is either the real, failing one or stands aside. The redundant copies
are checked against libubootenv instead.
"""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
import tidewaiter_updater
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot.envcopy import to_variables
from tidewaiter_updater.model import BootEnv

from tests.sim.loop import tool

SCRIPT = Path(tidewaiter_updater.__file__).parent / "boot_scripts/boot.cmd"
FIRMWARE = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
FLASH_BYTES = 64 * 1024 * 1024
ENV_BYTES = 0x40000
LIMIT_S = 60
_STARTS = re.compile(r"^GO ([AB]) .*root=PARTLABEL=rootfs\.([AB]) tidewaiter\.slot=([AB]) ", re.MULTILINE)


@dataclass(frozen=True)
class Ran:
    """One power-on."""

    screen: str
    slot: SlotName | None
    """None: a reset."""


def run(
    home: Path,
    env: BootEnv | None,
    *,
    broken: Collection[SlotName] = (),
    real_saveenv: bool = False,
) -> Ran:
    """Boot with a record (None: the default environment); slots in `broken` do not load."""
    emulator = tool("qemu-system-aarch64", "qemu-system-arm")
    if not FIRMWARE.exists():
        pytest.skip(f"{FIRMWARE} is not here (Debian: u-boot-qemu)")
    code, flash = home / "code.flash", home / "env.flash"
    _flash(code, FIRMWARE.read_bytes())
    _flash(flash, _environment(_variables(env, broken, real_saveenv=real_saveenv)))
    drives = [
        f"if=pflash,format=raw,index=0,readonly=on,file={code}",
        f"if=pflash,format=raw,index=1,file={flash}",
    ]
    machine = ["-M", "virt", "-cpu", "cortex-a53", "-m", "256", "-no-reboot", "-net", "none"]
    console = ["-nographic", "-nodefaults", "-serial", "stdio", "-monitor", "none"]
    done = subprocess.run(
        [emulator, *machine, *console, *(part for drive in drives for part in ("-drive", drive))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
    )
    screen = done.stdout.decode("latin-1").replace("\r", "")
    assert "U-Boot" in screen, screen + done.stderr.decode()
    assert "syntax error" not in screen.lower(), screen
    found = _STARTS.search(screen)
    if found is None:
        return Ran(screen, None)
    assert len(set(found.groups())) == 1, screen
    return Ran(screen, SlotName(found.group(1)))


def _variables(env: BootEnv | None, broken: Collection[SlotName], *, real_saveenv: bool) -> dict[str, str]:
    script = SCRIPT.read_text()
    if not real_saveenv:
        assert "if saveenv; then" in script
        script = script.replace("if saveenv; then", 'if echo "SPENT left ${tw_left}"; then')
    # No slot loads: the real script waits half a minute, then it resets.
    script = script.replace("sleep 30", "true")
    load = 'echo "LOAD ${tw_slot} ${tw_part}"'
    for slot in broken:
        load += f' && test "${{tw_slot}}" != {slot}'
    return {
        "bootdelay": "-2",
        "bootcmd": "run tidewaiter_boot",
        "tidewaiter_boot": script,
        "tw_dev": "mmc 0",
        "tw_part_a": "2",
        "tw_part_b": "3",
        "tw_load": load,
        "tw_go": 'echo "GO ${tw_slot} ${bootargs}"; poweroff',
        "tw_watchdog": "echo WATCHDOG",
        "tw_args": "quiet",
        **(to_variables(env) if env is not None else {}),
    }


def _environment(variables: dict[str, str]) -> bytes:
    """One copy, as a build without CONFIG_ENV_REDUNDANT has it."""
    body = "".join(f"{name}={value}\0" for name, value in variables.items()).encode() + b"\0"
    body = body.ljust(ENV_BYTES - 4, b"\0")
    return struct.pack("<I", zlib.crc32(body)) + body


def _flash(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.truncate(FLASH_BYTES)
