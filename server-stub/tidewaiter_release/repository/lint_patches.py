"""The part of `lint` that applies patches: each one between two releases of this repository must really give the new image."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.payload import Limits, Release
from tidewaiter_core.payload.components import PartRef

from tidewaiter_release.apply import prove_patch
from tidewaiter_release.image import ImageFile
from tidewaiter_release.patches import check_patch, unpack_image
from tidewaiter_release.repository.finding import Finding, error, warning
from tidewaiter_release.repository.store import State, Store


def check_patches(
    store: Store, state: State, releases: Sequence[Release], *, limits: Limits
) -> Iterator[Finding]:
    """Every patch: its tables, and by applying it where the repository has the image it starts from."""
    by_root = {release.slot.image_root: release for release in releases}
    for release in releases:
        for patch in release.slot.patches:
            place = _place(store, state, patch)
            if place is None or not place.exists():
                continue  # reported by check_files and check_releases
            try:
                check_patch(place, release.slot, patch, limits=limits)
                older = by_root.get(patch.from_root)
                if older is not None:
                    _apply(store, state, older, release, place, limits=limits)
            except TidewaiterError as err:
                yield error("patch", f"{patch.path}: {err}")
                continue
            if older is None:
                yield warning(
                    "patch",
                    f"{patch.path}: starts from an image that no release here has; it could not be applied",
                )


def _apply(
    store: Store, state: State, older: Release, newer: Release, patch: Path, *, limits: Limits
) -> None:
    with tempfile.TemporaryDirectory(prefix="tidewaiter-lint-") as work:
        images: Mapping[str, Release] = {"old": older, "new": newer}
        for name, release in images.items():
            index = _place(store, state, release.slot.index)
            pack = _place(store, state, release.slot.pack)
            if index is None or pack is None:
                return  # reported by check_releases
            unpack_image(index, pack, Path(work, name), limits=limits)
        with (
            ImageFile(Path(work, "old"), limits=limits) as old,
            ImageFile(Path(work, "new"), limits=limits) as new,
        ):
            prove_patch(old, patch, new)


def _place(store: Store, state: State, part: PartRef) -> Path | None:
    target = state.delegated["os"].signed.targets.get(part.path)
    return store.target_path(target) if target is not None else None
