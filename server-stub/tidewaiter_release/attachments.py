"""The files of a release beside index, pack and patches: kernel images per slot, injector firmware, the bill of materials.

They are copied into the build directory under the names that their target paths end with, so that the directory is all that
`publish` needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidewaiter_core.durable import write_atomic
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import FIRMWARE_LIMIT_BYTES, UKI_LIMIT_BYTES, uki_pieces
from tidewaiter_core.payload.release import SBOM_LIMIT_BYTES

from tidewaiter_release.errors import InputError
from tidewaiter_release.mcuboot import read_mcuboot

_PATTERNS = ("kernel-*.efi", "firmware-*.bin", "sbom*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """Firmware of one board, as a person names it."""

    board: str
    file: Path
    version: str | None = None
    """What the person expects; None: as the image says."""
    image_path: str
    """Its place inside the slot image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachments:
    """What release.json says of them, and the fetch that they add."""

    components: tuple[Mapping[str, Any], ...]
    sbom: Mapping[str, Any] | None
    compat: Mapping[str, Mapping[str, str]]
    """For each board with firmware: exactly its version."""
    fetch_bytes: int
    """Of the larger kernel image; firmware is read from the slot, the bill of materials by nobody."""
    files: Mapping[str, bytes]


def read_attachments(
    *, directory: str, ukis: Mapping[SlotName, Path], firmware: tuple[Firmware, ...], sbom: Path | None
) -> Attachments:
    """Read and check all of them; nothing is written yet.

    Args:
        directory: Target directory of the release.
        ukis: Kernel image by the slot it starts.

    Raises:
        InputError: A file is missing, empty, too large, or no MCUboot image of the version asked for.
    """
    files: dict[str, bytes] = {}
    components: list[Mapping[str, Any]] = []
    compat: dict[str, Mapping[str, str]] = {}
    for slot, path in sorted(ukis.items()):
        name = f"kernel-{slot.lower()}.efi"
        files[name] = _read(path, UKI_LIMIT_BYTES)
        pieces = [piece.sha256 for piece in uki_pieces(files[name])]
        part = _part(f"{directory}/{name}", files[name])
        components.append({"kind": "uki", "slot": slot.value, **part, "pieces": pieces})
    for one in firmware:
        data = _read(one.file, FIRMWARE_LIMIT_BYTES)
        image = read_mcuboot(data, what=str(one.file))
        if one.version is not None and one.version != image.version:
            raise InputError(
                f"{one.file}: is version {image.version}, expected {one.version}; nothing was built"
            )
        name = f"firmware-{one.board}-{image.version}.bin"
        files[name] = data
        compat[one.board] = {"min": image.version, "max": image.version}
        components.append(
            {
                "kind": "firmware",
                "board": one.board,
                "version": image.version,
                "mcuboot_hash": image.hash,
                "image_path": one.image_path,
                **_part(f"firmware/{one.board}/{image.version}/{name}", data),
            }
        )
    listed = None
    if sbom is not None:
        name = "sbom" + sbom.suffix.lower()
        files[name] = _read(sbom, SBOM_LIMIT_BYTES)
        listed = _part(f"{directory}/{name}", files[name])
    kernels = [len(data) for name, data in files.items() if name.startswith("kernel-")]
    return Attachments(
        components=tuple(components),
        sbom=listed,
        compat=compat,
        fetch_bytes=max(kernels, default=0),
        files=files,
    )


def write_attachments(attachments: Attachments, out: Path) -> None:
    """Put the files into the build directory, in place of those of an earlier build."""
    for pattern in _PATTERNS:
        for stale in out.glob(pattern):
            if stale.name not in attachments.files:
                stale.unlink()
    for name, data in attachments.files.items():
        write_atomic(out / name, data, mode=0o644)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(limit + 1)
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}; nothing was built") from err
    if not 1 <= len(data) <= limit:
        raise InputError(f"{path}: {size} bytes, expected 1 to {limit}; nothing was built")
    return data


def _part(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "length": len(data), "sha256": Sha256.of(data)}
