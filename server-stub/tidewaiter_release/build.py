"""`tidewaiter-release build`: an image becomes index, pack and an unsigned release.json. The same inputs, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from tidewaiter_core import __version__
from tidewaiter_core.durable import write_atomic
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload import STANDARD, IndexHeader, Limits, Release, build_release
from tidewaiter_core.payload.limits import U32_MAX, chunk_count
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES, SlotComponent

from tidewaiter_release import zstd
from tidewaiter_release.attachments import Attachments, Firmware, read_attachments, write_attachments
from tidewaiter_release.errors import InputError
from tidewaiter_release.patches import make_patches
from tidewaiter_release.payload import (
    DEFAULT_LEVEL,
    INDEX_NAME,
    PACK_NAME,
    BuiltFile,
    BuiltImage,
    build_image,
)

RELEASE_NAME = "release.json"
BUILD_NAME = "build.json"
_FETCH_SPARE_BYTES = 2**20
_SUPERBLOCKS = (
    ("ext4", 1024 + 56, b"\x53\xef"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """What a person decides about a release; everything else is measured from the image."""

    product: str
    version: str
    sequence: int
    hw: tuple[str, ...]
    built_utc: datetime
    security_epoch: int = 0
    consent: str = "none"
    risk: str = "routine"
    tries: int = 3
    activation: str = "any"
    health_required: tuple[str, ...] = ()
    health_deadline_s: int = 600
    health_hold_s: int = 30
    from_min: int = 0
    from_max: int = U32_MAX
    data_writes: int = 1
    data_reads_min: int = 1
    data_reads_max: int = 1
    data_reversible: bool = True
    max_fetch_bytes: int | None = None
    """None: index and pack with the tolerance of update-engine.md section 6."""
    fs: str | None = None
    """None: as the superblock says."""
    notes: Mapping[str, str] = field(default_factory=dict)
    ukis: Mapping[SlotName, Path] = field(default_factory=dict)
    """Unified kernel images by the slot they start, for devices with systemd-boot."""
    firmware: tuple[Firmware, ...] = ()
    firmware_compat: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Board to lowest and highest version; a board with firmware and no entry: exactly that version."""
    sbom: Path | None = None
    verity: Mapping[str, Any] | None = None
    """root_hash, salt, data_bytes, hash_offset of dm-verity inside the image."""
    rollout: Mapping[str, Any] | None = None
    """salt, percent_x100, not_before_utc."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further top-level fields; devices pass over those named x_..., and know no others."""


def build(
    image: Path,
    out: Path,
    spec: BuildSpec,
    *,
    level: int = DEFAULT_LEVEL,
    patch_from: Sequence[Path] = (),
    patch_level: int = zstd.PUBLISH_LEVEL,
    workers: int | None = None,
    limits: Limits = STANDARD,
    stream: TextIO | None = None,
) -> Release:
    """Write release.json, index.twci, pack.twpk, the patches and build.json into `out`.

    release.json is written last: a directory that has one is complete.

    Args:
        patch_from: Older images, or the directories they were built into.

    Raises:
        ReleaseToolError: The image cannot be used.
        PayloadError: The spec breaks a rule of release.json.
    """
    fs = spec.fs or detect_fs(image)
    attachments = read_attachments(
        directory=_target_directory(spec), ukis=spec.ukis, firmware=spec.firmware, sbom=spec.sbom
    )
    # A typing error should not cost the compression of a whole image.
    _probe(image, spec, attachments, fs=fs, limits=limits)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RELEASE_NAME).unlink(missing_ok=True)
    except OSError as err:
        raise InputError(f"{out}: cannot be written to: {err}; nothing was built") from err
    write_attachments(attachments, out)
    built = build_image(image, out, level=level, workers=workers, limits=limits, stream=stream)
    patches = make_patches(
        image,
        out,
        built,
        patch_from,
        target_directory=_target_directory(spec),
        level=patch_level,
        workers=workers,
        limits=limits,
        stream=stream,
    )
    fields = release_fields(spec, built, attachments, fs=fs, patches=patches)
    data = build_release(fields, limits=limits)
    release = Release.parse(data, limits=limits)
    record = {
        "schema": 1,
        "tool": f"tidewaiter-release {__version__}",
        "zstd": zstd.library_version(),
        "level": level,
        "patch_level": patch_level,
        "digest": release.digest,
    }
    write_atomic(out / BUILD_NAME, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n", mode=0o644)
    write_atomic(out / RELEASE_NAME, data, mode=0o644)
    return release


def release_fields(
    spec: BuildSpec,
    built: BuiltImage,
    attachments: Attachments,
    *,
    fs: str,
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The document as JSON values."""
    fetch = built.index.length + built.pack.length + attachments.fetch_bytes
    directory = _target_directory(spec)
    slot = {
        "kind": "slot",
        "name": "rootfs",
        "image_bytes": built.header.image_bytes,
        "image_sha256": built.header.image_sha256,
        "image_root": built.header.image_root,
        "chunk_bytes": built.header.chunk_bytes,
        "fs": fs,
        "verity": spec.verity,
        "index": {
            "path": f"{directory}/{INDEX_NAME}",
            "length": built.index.length,
            "sha256": built.index.sha256,
        },
        "pack": {
            "path": f"{directory}/{PACK_NAME}",
            "length": built.pack.length,
            "sha256": built.pack.sha256,
        },
        "patches": list(patches),
    }
    fields = {
        "format": 1,
        "requires": [],
        "product": spec.product,
        "version": spec.version,
        "sequence": spec.sequence,
        "security_epoch": spec.security_epoch,
        "built_utc": f"{spec.built_utc.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "hw": list(spec.hw),
        "from": {"min_sequence": spec.from_min, "max_sequence": spec.from_max},
        "components": [slot, *attachments.components],
        "data": {
            "writes": spec.data_writes,
            "reads_min": spec.data_reads_min,
            "reads_max": spec.data_reads_max,
            "reversible": spec.data_reversible,
        },
        "health": {
            "required": list(spec.health_required),
            "deadline_s": spec.health_deadline_s,
            "hold_s": spec.health_hold_s,
        },
        "policy": {
            "consent": spec.consent,
            "risk": spec.risk,
            "tries": spec.tries,
            "activation": spec.activation,
            "max_fetch_bytes": spec.max_fetch_bytes or fetch + fetch // 20 + _FETCH_SPARE_BYTES,
        },
        **spec.extra,
    }
    compat = {board: {"min": low, "max": high} for board, (low, high) in spec.firmware_compat.items()}
    optional = {
        "notes": dict(spec.notes),
        "firmware_compat": {**attachments.compat, **compat},
        "sbom": attachments.sbom,
        "rollout": spec.rollout,
    }
    return {**fields, **{key: value for key, value in optional.items() if value}}


def detect_fs(image: Path) -> str:
    """Which file system the image holds, by its superblock.

    Raises:
        InputError: None that a slot can hold, or the image is unreadable.
    """
    try:
        with image.open("rb") as file:
            head = file.read(2048)
    except OSError as err:
        raise InputError(f"{image}: cannot be read: {err}") from err
    for name, offset, magic in _SUPERBLOCKS:
        if head[offset : offset + len(magic)] == magic:
            return name
    raise InputError(f"{image}: no ext4, erofs or squashfs superblock found; say which it is with --fs")


def read_release(directory: Path, *, limits: Limits = STANDARD) -> tuple[bytes, Release]:
    """release.json of a build directory.

    Raises:
        InputError: There is none, so the directory is no finished build.
        PayloadError: It breaks a rule.
    """
    path = directory / RELEASE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(RELEASE_LIMIT_BYTES + 1)
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}; {directory} is no finished build") from err
    return data, Release.parse(data, limits=limits)


def part_name(path: str) -> str:
    """The file name of a target path."""
    return path.rsplit("/", 1)[-1]


def slot_files(release: Release) -> tuple[SlotComponent, str, str]:
    """The slot component and the names of its index and pack inside a build directory."""
    return release.slot, part_name(release.slot.index.path), part_name(release.slot.pack.path)


def _target_directory(spec: BuildSpec) -> str:
    return f"releases/{spec.product}/{spec.version}"


def _probe(image: Path, spec: BuildSpec, attachments: Attachments, *, fs: str, limits: Limits) -> None:
    """Check the spec against the size of the image, before anything of it is read."""
    try:
        image_bytes = limits.padded(image.stat().st_size)
    except OSError as err:
        raise InputError(f"{image}: cannot be read: {err}") from err
    limits.check_image_bytes(image_bytes, what=image.name)
    nothing = Sha256("0" * 64)
    chunk_bytes = limits.chunk_bytes_for(image_bytes)
    header = IndexHeader(
        image_bytes=image_bytes,
        chunk_bytes=chunk_bytes,
        chunk_count=chunk_count(image_bytes, chunk_bytes),
        image_sha256=nothing,
        image_root=nothing,
        pack_root=nothing,
        pack_bytes=64,
    )
    file = BuiltFile(length=header.file_bytes, sha256=nothing)
    built = BuiltImage(header=header, index=file, pack=BuiltFile(length=64, sha256=nothing))
    build_release(release_fields(spec, built, attachments, fs=fs), limits=limits)
