"""What a boot loader, a power cut or another operating system may have left in the boot environment."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise

from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import envcopy, grubenv
from tidewaiter_updater.boot.layout import Layout
from tidewaiter_updater.boot.ukiname import UkiName, compare_versions, is_before
from tidewaiter_updater.model import BootEnv

from tests.fuzz.target import Target, require

_ENV = BootEnv(
    committed=SlotName.A,
    ok_a=True,
    ok_b=True,
    trial=SlotName.B,
    left=3,
    refunds=1,
    txn="0123456789abcdef",
    armboot="89abcdef",
    epoch=7,
)


def _copy(layout: Layout, raw: bytes) -> bool:
    found = layout.decode(raw)
    if found is None:
        return False
    env = envcopy.from_variables(found.variables)
    if env is not None:
        require(envcopy.from_variables(envcopy.to_variables(env)) == env, "a record that does not round-trip")
    try:
        again = layout.encode(
            {**found.variables, **envcopy.to_variables(_ENV)}, (found.flag + 1) % layout.numbers
        )
    except ValueError:
        return True  # does not fit, or cannot be written: said so, and nothing was changed
    written = layout.decode(again)
    require(written is not None, "what was written over this copy cannot be read")
    require(
        written is not None and envcopy.from_variables(written.variables) == _ENV,
        "another record was written",
    )
    require(layout.newest((found, written)) == 1, "the record that was written is not the one in force")
    return True


def _uboot(data: bytes) -> bool:
    """The checksum is made right for every input but those that bring all 16 KiB: a fuzzer cannot guess it."""
    if len(data) < envcopy.COPY_BYTES:
        body = data[1:].ljust(envcopy.COPY_BYTES - 5, b"\0")[: envcopy.COPY_BYTES - 5]
        data = struct.pack("<IB", zlib.crc32(body), data[0] if data else 0) + body
    return _copy(envcopy.LAYOUT, data)


def _uboot_seeds() -> Iterator[bytes]:
    raw = envcopy.encode({**envcopy.to_variables(_ENV), "bootcmd": "run tidewaiter"}, flag=255)
    yield raw
    yield raw[4:].rstrip(b"\0")
    yield b"\x01tw_committed=A\0\0"


def _grub(data: bytes) -> bool:
    return _copy(grubenv.LAYOUT, data.ljust(grubenv.BLOCK_BYTES, b"#"))


def _grub_seeds() -> Iterator[bytes]:
    yield grubenv.encode({**envcopy.to_variables(_ENV), "saved_entry": "a\\b\nc"}, number=3)
    yield grubenv.encode(envcopy.to_variables(_ENV), number=0)[:600]


def _uki(data: bytes) -> bool:
    """Names of a folder, one a line."""
    names = [line.decode("latin-1") for line in data.split(b"\n")][:8]
    entries = [entry for entry in map(UkiName.parse, names) if entry is not None]
    for entry in entries:
        require(UkiName.parse(str(entry)) == entry, f"{entry} does not round-trip")
        require(UkiName.parse(str(entry.good())) == entry.good(), f"{entry.good()} does not round-trip")
    for first, second in pairwise(entries):
        require(
            not (is_before(first, second) and is_before(second, first)),
            f"{first} and {second} before each other",
        )
    for one, other in pairwise(names):
        order, mirrored = compare_versions(one, other), compare_versions(other, one)
        require((order > 0) == (mirrored < 0), f"{one!r} and {other!r} have no order")
    return bool(entries)


def _uki_seeds() -> Iterator[bytes]:
    yield b"tidewaiter-1.2.3.A.efi\ntidewaiter-1.2.4.B+3.efi\ntidewaiter-1.2.4.B+2-1.efi\ntidewaiter-1.2.4-rc1.B+0-3.efi"
    yield b"tidewaiter-1~rc1.A.efi\ntidewaiter-1^a.B+9.efi"


TARGETS = (
    Target(
        name="uboot-env",
        what="U-Boot environment",
        run=_uboot,
        refusals=(),
        seeds=_uboot_seeds,
        max_bytes=envcopy.COPY_BYTES,
        modules=("tidewaiter_updater.boot",),
    ),
    Target(
        name="grub-env",
        what="GRUB environment block",
        run=_grub,
        refusals=(),
        seeds=_grub_seeds,
        max_bytes=grubenv.BLOCK_BYTES,
        modules=("tidewaiter_updater.boot",),
    ),
    Target(
        name="uki-names",
        what="names on the ESP",
        run=_uki,
        refusals=(),
        seeds=_uki_seeds,
        max_bytes=512,
        modules=("tidewaiter_updater.boot",),
    ),
)
