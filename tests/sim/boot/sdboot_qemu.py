"""The real systemd-boot on real UEFI firmware (Debian's systemd-boot-efi and OVMF) under QEMU, on a FAT that the updater writes.

Kernel images are hand-made: a PE32+ program with the sections that make it a unified kernel image (.osrel names the version that
systemd-boot sorts by), which tells the serial line its slot and resets the machine. A boot takes about five seconds.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName

from tests.sim.boot.fat import ROOT, FatDisk
from tests.sim.loop import tool

LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
LIMIT_S = 120
_STARTED = re.compile(rb"STARTED-([AB])\n")
_SECTION_BYTES, _FILE_BYTES = 0x1000, 0x200


def require() -> None:
    """Skip where a part is missing."""
    tool("qemu-system-x86_64", "qemu-system-x86")
    for path, package in ((LOADER, "systemd-boot-efi"), (FIRMWARE, "ovmf"), (VARIABLES, "ovmf")):
        if not path.exists():
            pytest.skip(f"{path} is not here (Debian: {package})")


def install(fat: FatDisk) -> None:
    """Put the loader where firmware looks on a disk without boot entries."""
    for folder in ("EFI/BOOT", "loader"):
        fat.make_directory(ROOT / folder)
    fat.put(ROOT / "EFI/BOOT/BOOTX64.EFI", LOADER.read_bytes())
    fat.put(ROOT / "loader/loader.conf", b"timeout 0\nauto-firmware no\n")


def power_on(fat: FatDisk) -> SlotName | None:
    """The slot whose image was started; None when the firmware had nothing more to start."""
    variables = fat.image.with_suffix(".vars")
    shutil.copyfile(VARIABLES, variables)
    drives = [
        f"if=pflash,format=raw,readonly=on,file={FIRMWARE}",
        f"if=pflash,format=raw,file={variables}",
        f"if=none,format=raw,id=esp,file={fat.image}",
    ]
    machine = ["-machine", "q35", "-m", "256", "-net", "none", "-no-reboot"]
    console = ["-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none"]
    with subprocess.Popen(
        [
            tool("qemu-system-x86_64", "qemu-system-x86"),
            *machine,
            *console,
            *(part for drive in drives for part in ("-drive", drive)),
            *("-device", "virtio-blk-pci,drive=esp,bootindex=0"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            screen, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    found = _STARTED.search(screen)
    return SlotName(found.group(1).decode()) if found else None


def kernel_image(slot: SlotName, version: str) -> bytes:
    """A unified kernel image that says its slot and resets the machine."""
    program = b"\x66\xba\xf8\x03"  # mov dx, 0x3f8: the serial line
    for character in b"STARTED-%s\n" % slot.encode():
        program += bytes((0xB0, character, 0xEE))  # mov al, character; out dx, al
    program += b"\x66\xba\xf9\x0c\xb0\x06\xee"  # mov dx, 0xcf9; mov al, 6; out dx, al: reset
    program += b"\xf4\xeb\xfd"  # hlt; jmp
    release = f'ID=tidewaiter\nPRETTY_NAME="tidewaiter {version}"\nVERSION_ID={version}\n'
    return _portable_executable(
        (
            (b".text", program, 0x60000020),
            (b".osrel", release.encode(), 0x40000040),
            (b".cmdline", f"tidewaiter.slot={slot}".encode(), 0x40000040),
        )
    )


def _portable_executable(sections: tuple[tuple[bytes, bytes, int], ...]) -> bytes:
    """A PE32+ EFI application for x86-64 that starts at its first section."""
    head = 64 + 4 + 20 + 240 + 40 * len(sections)
    start = at = -(-head // _FILE_BYTES) * _FILE_BYTES
    address = _SECTION_BYTES
    table = body = b""
    for name, data, flags in sections:
        size = -(-len(data) // _FILE_BYTES) * _FILE_BYTES
        table += struct.pack("<8sIIIIIIHHI", name, len(data), address, size, at, 0, 0, 0, 0, flags)
        body += data.ljust(size, b"\0")
        at += size
        address += -(-len(data) // _SECTION_BYTES) * _SECTION_BYTES
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 240, 0x0222)
    optional = struct.pack("<HBBIIIII", 0x20B, 1, 0, 0x200, 0x400, 0, _SECTION_BYTES, _SECTION_BYTES)
    optional += struct.pack("<QII", 0x10000000, _SECTION_BYTES, _FILE_BYTES)
    optional += struct.pack("<HHHHHHIIIIHH", 0, 0, 0, 0, 0, 0, 0, address, start, 0, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    return (dos + b"PE\0\0" + coff + optional + table).ljust(start, b"\0") + body
