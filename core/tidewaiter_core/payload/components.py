"""The components part of release.json: the images of a release and the files they are fetched from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.fields import NAME, Fields
from tidewaiter_core.payload.limits import Limits, chunk_count

INDEX_HEADER_BYTES = 160
INDEX_ENTRY_BYTES = 84
PACK_HEADER_BYTES = 64
PATCH_HEADER_BYTES = 224
PATCH_HEAD_LIMIT_BYTES = 64 * 1024**2
UKI_LIMIT_BYTES = 128 * 1024**2
UKI_PIECE_BYTES = 1024**2
"""What of a kernel image is proven, kept and fetched again on its own; 128 hashes of the largest fit into release.json."""
FIRMWARE_LIMIT_BYTES = 4 * 1024**2
_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)
_FIRMWARE_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,64}", re.ASCII)


class FileSystem(StrEnum):
    """What the slot image holds. All three are mounted read-only and without a journal."""

    EXT4 = "ext4"
    EROFS = "erofs"
    SQUASHFS = "squashfs"


class _Kind(StrEnum):
    SLOT = "slot"
    UKI = "uki"
    FIRMWARE = "firmware"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRef:
    """A target of the repository that belongs to the release."""

    path: str
    """Target path; fetched with the hash prefix of consistent snapshots."""
    length: int
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRef(PartRef):
    """The chunk index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRef(PartRef):
    """The pack of stored chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRef(PartRef):
    """A patch from one older image."""

    from_root: Sha256
    """`image_root` of the image it starts from."""
    head_bytes: int
    head_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """dm-verity inside the image."""

    root_hash: Sha256
    salt: str
    data_bytes: int
    hash_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotComponent:
    """The root file system image."""

    name: str
    image_bytes: int
    image_sha256: Sha256
    image_root: Sha256
    """SHA-256 over the concatenated chunk hashes: proving all chunks proves the image."""
    chunk_bytes: int
    fs: FileSystem
    verity: Verity | None
    index: IndexRef
    pack: PackRef
    patches: tuple[PatchRef, ...]

    @property
    def chunk_count(self) -> int:
        return chunk_count(self.image_bytes, self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class UkiPiece:
    """A stretch of a kernel image that is known to be right on its own."""

    offset: int
    length: int
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class UkiComponent(PartRef):
    """A unified kernel image for one slot (systemd-boot)."""

    slot: SlotName
    pieces: tuple[UkiPiece, ...]
    """All of it, in order: pieces of 1 MiB, the last one may be shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareComponent(PartRef):
    """Injector firmware; also a target of the role injector-firmware."""

    board: str
    version: str
    mcuboot_hash: Sha256
    """MCUboot's own image hash, which differs from the file's."""
    image_path: str
    """Its place inside the slot image."""


Component = SlotComponent | UkiComponent | FirmwareComponent
_Part = TypeVar("_Part", bound=PartRef)


def read_component(source: Fields, *, product: str, limits: Limits) -> Component:
    """One entry of `components`; its `kind` says which."""
    kind = source.choice("kind", _Kind)
    prefix = f"releases/{product}/"
    component: Component
    if kind is _Kind.SLOT:
        component = _read_slot(source, prefix=prefix, limits=limits)
    elif kind is _Kind.UKI:
        component = _read_uki(source, prefix=prefix)
    else:
        part = _part(source, prefix="firmware/", low=1, high=FIRMWARE_LIMIT_BYTES)
        component = FirmwareComponent(
            path=part.path,
            length=part.length,
            sha256=part.sha256,
            board=source.text("board", pattern=NAME),
            version=source.text("version", pattern=_FIRMWARE_VERSION, high=64),
            mcuboot_hash=source.digest("mcuboot_hash"),
            image_path=source.path("image_path"),
        )
    source.finish()
    return component


def read_part(source: Fields, kind: type[_Part], *, prefix: str, low: int, high: int) -> _Part:
    """A `{path, length, sha256}` object that has no further fields."""
    part = _part(source, prefix=prefix, low=low, high=high)
    source.finish()
    return kind(path=part.path, length=part.length, sha256=part.sha256)


def _part(source: Fields, *, prefix: str, low: int, high: int) -> PartRef:
    path = source.path("path")
    # The delegations sign exactly four segments: a part elsewhere could never be a target of the right role.
    if not path.startswith(prefix) or path.count("/") != 3:
        source.refuse("path", f"expected {prefix}... with four segments, found '{path}'")
    return PartRef(
        path=path, length=source.integer("length", low=low, high=high), sha256=source.digest("sha256")
    )


def uki_pieces(data: bytes) -> tuple[UkiPiece, ...]:
    """The pieces of a kernel image."""
    return tuple(
        UkiPiece(offset, len(piece), Sha256(hashlib.sha256(piece).hexdigest()))
        for offset in range(0, len(data), UKI_PIECE_BYTES)
        for piece in (data[offset : offset + UKI_PIECE_BYTES],)
    )


def _read_uki(source: Fields, *, prefix: str) -> UkiComponent:
    part = _part(source, prefix=prefix, low=1, high=UKI_LIMIT_BYTES)
    digests = source.digests("pieces", count=-(-part.length // UKI_PIECE_BYTES))
    if len(digests) == 1 and digests[0] != part.sha256:
        source.refuse("pieces", "the only piece is the whole image, but has another hash")
    pieces = tuple(
        UkiPiece(
            number * UKI_PIECE_BYTES, min(UKI_PIECE_BYTES, part.length - number * UKI_PIECE_BYTES), digest
        )
        for number, digest in enumerate(digests)
    )
    return UkiComponent(
        slot=source.choice("slot", SlotName),
        path=part.path,
        length=part.length,
        sha256=part.sha256,
        pieces=pieces,
    )


def _read_slot(source: Fields, *, prefix: str, limits: Limits) -> SlotComponent:
    image_bytes = source.integer("image_bytes", low=limits.block_bytes, high=limits.max_image_bytes)
    if image_bytes % limits.block_bytes:
        source.refuse("image_bytes", f"{image_bytes} is not a multiple of {limits.block_bytes}")
    expected = limits.chunk_bytes_for(image_bytes)
    chunk_bytes = source.integer("chunk_bytes", low=expected, high=expected)
    index_bytes = INDEX_HEADER_BYTES + INDEX_ENTRY_BYTES * chunk_count(image_bytes, chunk_bytes)
    image_root = source.digest("image_root")
    return SlotComponent(
        name=source.text("name", pattern=NAME),
        image_bytes=image_bytes,
        image_sha256=source.digest("image_sha256"),
        image_root=image_root,
        chunk_bytes=chunk_bytes,
        fs=source.choice("fs", FileSystem),
        verity=None
        if source.nothing("verity")
        else _read_verity(source.object("verity"), image_bytes=image_bytes),
        index=read_part(source.object("index"), IndexRef, prefix=prefix, low=index_bytes, high=index_bytes),
        pack=read_part(
            source.object("pack"),
            PackRef,
            prefix=prefix,
            low=PACK_HEADER_BYTES,
            high=PACK_HEADER_BYTES + image_bytes,
        ),
        patches=_read_patches(source, prefix=prefix, image_root=image_root, image_bytes=image_bytes),
    )


def _read_verity(source: Fields, *, image_bytes: int) -> Verity:
    verity = Verity(
        root_hash=source.digest("root_hash"),
        salt=source.text("salt", pattern=_HEX, low=0),
        data_bytes=source.integer("data_bytes", low=512, high=image_bytes),
        hash_offset=source.integer("hash_offset", low=512, high=image_bytes),
    )
    source.finish()
    if verity.data_bytes % 512 or verity.hash_offset % 512 or verity.hash_offset < verity.data_bytes:
        source.refuse("hash_offset", "data and hash tree overlap or do not start on a sector")
    return verity


def _read_patches(
    source: Fields, *, prefix: str, image_root: Sha256, image_bytes: int
) -> tuple[PatchRef, ...]:
    patches = tuple(
        _read_patch(entry, prefix=prefix, image_bytes=image_bytes)
        for entry in source.objects("patches", low=0, high=16)
    )
    roots = [patch.from_root for patch in patches]
    if len(set(roots)) != len(roots) or image_root in roots:
        source.refuse(
            "patches", "two patches start from the same image, or one starts from the new image itself"
        )
    return patches


def _read_patch(source: Fields, *, prefix: str, image_bytes: int) -> PatchRef:
    high = PATCH_HEAD_LIMIT_BYTES + 2 * image_bytes
    part = _part(source, prefix=prefix, low=PATCH_HEADER_BYTES, high=high)
    patch = PatchRef(
        path=part.path,
        length=part.length,
        sha256=part.sha256,
        from_root=source.digest("from_root"),
        head_bytes=source.integer(
            "head_bytes", low=PATCH_HEADER_BYTES, high=min(part.length, PATCH_HEAD_LIMIT_BYTES)
        ),
        head_sha256=source.digest("head_sha256"),
    )
    source.finish()
    return patch
