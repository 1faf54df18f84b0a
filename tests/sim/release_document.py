"""A release document that uses every field, as JSON values a test may change before it is built."""

from __future__ import annotations

import copy
from typing import Any

from tidewaiter_core.model import Sha256

IMAGE_BYTES = 1024 * 1024
DIRECTORY = "releases/contrast-injector/2.4.1"


def digest(name: str) -> str:
    """A digest that differs from the others."""
    return str(Sha256.of(name.encode()))


_SLOT: dict[str, Any] = {
    "kind": "slot",
    "name": "rootfs",
    "image_bytes": IMAGE_BYTES,
    "image_sha256": digest("image"),
    "image_root": digest("root"),
    "chunk_bytes": 65_536,
    "fs": "erofs",
    "verity": {
        "root_hash": digest("verity"),
        "salt": "0badcafe",
        "data_bytes": IMAGE_BYTES // 2,
        "hash_offset": IMAGE_BYTES // 2,
    },
    "index": {"path": f"{DIRECTORY}/index.twci", "length": 160 + 84 * 16, "sha256": digest("index")},
    "pack": {"path": f"{DIRECTORY}/pack.twpk", "length": 500_000, "sha256": digest("pack")},
    "patches": [
        {
            "path": f"{DIRECTORY}/from-1.twpt",
            "length": 40_000,
            "sha256": digest("patch"),
            "from_root": digest("old root"),
            "head_bytes": 1024,
            "head_sha256": digest("head"),
        }
    ],
}

_FIELDS: dict[str, Any] = {
    "format": 1,
    "requires": [],
    "product": "contrast-injector",
    "version": "2.4.1",
    "sequence": 17,
    "security_epoch": 3,
    "built_utc": "2026-11-01T08:00:00Z",
    "hw": ["ci-300", "ci-310"],
    "from": {"min_sequence": 10, "max_sequence": 16},
    "components": [
        _SLOT,
        {
            "kind": "uki",
            "slot": "A",
            "path": f"{DIRECTORY}/a.efi",
            "length": 9_000_000,
            "sha256": digest("uki"),
            "pieces": [digest(f"uki {number}") for number in range(9)],
        },
        {
            "kind": "firmware",
            "board": "head",
            "version": "1.4.0",
            "path": "firmware/head/1.4.0/image.bin",
            "length": 200_000,
            "sha256": digest("firmware"),
            "mcuboot_hash": digest("mcuboot"),
            "image_path": "usr/lib/firmware/head.bin",
        },
    ],
    "data": {"writes": 4, "reads_min": 3, "reads_max": 4, "reversible": True},
    "firmware_compat": {"head": {"min": "1.3.0", "max": "1.4.9"}},
    "health": {"required": ["hal", "injector"], "deadline_s": 600, "hold_s": 30},
    "policy": {
        "consent": "local",
        "risk": "security",
        "tries": 3,
        "activation": "window",
        "max_fetch_bytes": 2_000_000,
    },
    "rollout": {"salt": "0" * 32, "percent_x100": 2500, "not_before_utc": "2026-11-02T00:00:00Z"},
    "sbom": {"path": f"{DIRECTORY}/sbom.spdx.json", "length": 12_345, "sha256": digest("sbom")},
    "notes": {"en": "Faster start.\nNo change for therapy.", "de": "Schnellerer Start."},
}


def release_fields() -> dict[str, Any]:
    """A fresh copy of the whole document."""
    return copy.deepcopy(_FIELDS)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with one place changed, for instance `components.0.fs`; value `...` removes it."""
    fields = release_fields()
    *parents, last = path.split(".")
    place: Any = fields
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return fields
