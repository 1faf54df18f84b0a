"""The part of `lint` that opens the targets: every file, every hash, and what the releases promise each other."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tidewaiter_core.payload import STANDARD, IndexReader, Limits, PayloadError, Release, require_match
from tidewaiter_core.payload.release import Consent, FirmwareComponent, PartRef, UkiComponent
from tuf.api.metadata import TargetFile

from tidewaiter_release.build import part_name
from tidewaiter_release.check import check_pieces
from tidewaiter_release.errors import ReleaseToolError
from tidewaiter_release.repository.finding import Finding, error, warning
from tidewaiter_release.repository.lint_patches import check_patches
from tidewaiter_release.repository.publish import read_published
from tidewaiter_release.repository.store import State, Store


def check_files(store: Store, states: Sequence[State]) -> Iterator[Finding]:
    """Every target of either side is there with its length and hash, and nothing else is."""
    expected: dict[Path, TargetFile] = {}
    for state in states:
        for metadata in (state.targets, *state.delegated.values()):
            for target in metadata.signed.targets.values():
                if "sha256" in target.hashes:
                    expected.setdefault(store.target_path(target), target)
    for path, target in sorted(expected.items()):
        yield from _check_file(path, target)
    for path in sorted(store.targets.rglob("*")):
        if path.is_file() and path not in expected:
            yield warning(
                "file",
                f"{path.relative_to(store.targets)}: no target; superseded, or left by a publish that did not finish",
            )


def check_releases(store: Store, state: State, *, limits: Limits = STANDARD) -> Iterator[Finding]:
    """Each release document with its parts, and the order of the releases of each product."""
    if "os" not in state.delegated:
        return
    releases: list[Release] = []
    for path, target in sorted(state.delegated["os"].signed.targets.items()):
        if part_name(path) != "release.json" or "sha256" not in target.hashes:
            continue
        try:
            release = read_published(store, target, limits=limits)
        except ReleaseToolError as err:
            yield error("release", str(err))
            continue
        releases.append(release)
        if release.path != path:
            yield error("release", f"{path}: says it is {release.product} {release.version}")
        yield from _check_parts(state, release)
        yield from _check_index(store, state, release, limits=limits)
        yield from _check_kernels(store, state, release)
        yield from _check_firmware_range(release)
        yield from _check_reversible(release)
    yield from _check_order(releases)
    yield from _check_ways(releases)
    yield from check_patches(store, state, releases, limits=limits)


def _check_file(path: Path, target: TargetFile) -> Iterator[Finding]:
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        yield error("file", f"{target.path}: {err}")
        return
    if length != target.length:
        yield error("file", f"{target.path}: {length} bytes, signed as {target.length}")
    elif digest != target.hashes["sha256"]:
        yield error("file", f"{target.path}: sha256 {digest}, signed as {target.hashes['sha256']}")


def _check_parts(state: State, release: Release) -> Iterator[Finding]:
    """Whatever a release names is a target of the right role, so that any TUF tool can mirror or audit it."""
    slot = release.slot
    parts: list[tuple[str, PartRef]] = [
        ("os", slot.index),
        ("os", slot.pack),
        *(("os", patch) for patch in slot.patches),
    ]
    for component in release.components:
        if isinstance(component, UkiComponent):
            parts.append(("os", component))
        elif isinstance(component, FirmwareComponent):
            parts.append(("injector-firmware", component))
    if release.sbom is not None:
        parts.append(("os", release.sbom))
    for role, part in parts:
        signed = state.delegated[role].signed.targets.get(part.path) if role in state.delegated else None
        if signed is None:
            yield error("release", f"{release.path}: names {part.path}, which is no target of role {role}")
        elif (signed.length, signed.hashes.get("sha256")) != (part.length, part.sha256):
            yield error(
                "release", f"{release.path}: {part.path} is signed by role {role} with another length or hash"
            )


def _check_index(store: Store, state: State, release: Release, *, limits: Limits) -> Iterator[Finding]:
    target = state.delegated["os"].signed.targets.get(release.slot.index.path)
    if target is None:
        return  # reported by _check_parts
    try:
        with store.target_path(target).open("rb") as file:

            def read_at(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)

            reader = IndexReader(read_at, os.fstat(file.fileno()).st_size, limits=limits)
            require_match(reader.header, release.slot)
            reader.verify_tables()
    except OSError:
        return  # reported by check_files
    except PayloadError as err:
        yield error("index", f"{target.path}: {err}")


def _check_kernels(store: Store, state: State, release: Release) -> Iterator[Finding]:
    for part in release.components:
        target = (
            state.delegated["os"].signed.targets.get(part.path) if isinstance(part, UkiComponent) else None
        )
        if target is None or not isinstance(part, UkiComponent):
            continue  # reported by _check_parts
        try:
            check_pieces(part, store.target_path(target).read_bytes())
        except OSError:
            continue  # reported by check_files
        except PayloadError as err:
            yield error("kernel", str(err))


def _check_firmware_range(release: Release) -> Iterator[Finding]:
    for firmware in release.firmware:
        allowed = release.firmware_compat.get(firmware.board)
        if allowed is None or firmware.version not in allowed:
            yield error(
                "firmware",
                f"{release.path}: brings {firmware.board} {firmware.version}, outside its own firmware_compat",
            )


def _check_order(releases: list[Release]) -> Iterator[Finding]:
    """Sequence is the only order: no two releases share one, and epoch and build time follow it."""
    for product in sorted({release.product for release in releases}):
        ordered = sorted((one for one in releases if one.product == product), key=lambda one: one.sequence)
        for older, newer in itertools.pairwise(ordered):
            if older.sequence == newer.sequence:
                yield error(
                    "sequence",
                    f"{product}: versions {older.version} and {newer.version} share {newer.sequence}",
                )
            if newer.security_epoch < older.security_epoch:
                yield error(
                    "sequence",
                    f"{newer.path}: security_epoch {newer.security_epoch} is below {older.security_epoch} before it",
                )
            if newer.built_utc < older.built_utc:
                yield warning(
                    "sequence", f"{newer.path}: built before {older.version}, whose sequence is lower"
                )


def _check_ways(releases: list[Release]) -> Iterator[Finding]:
    """From each release that `from` admits, the data it wrote has to be readable, or the device refuses the way there."""
    for newer in releases:
        before = [one for one in releases if one.product == newer.product and one.sequence < newer.sequence]
        admitted = [one for one in before if one.sequence in newer.from_range]
        for older in admitted:
            if not newer.data.reads_min <= older.data.writes <= newer.data.reads_max:
                yield error(
                    "data",
                    f"{newer.path}: admits sequence {older.sequence}, whose data schema {older.data.writes} it cannot read "
                    f"({newer.data.reads_min}..{newer.data.reads_max}); raise `from` or widen `reads`",
                )
        if before and not admitted:
            yield warning("from", f"{newer.path}: no release of this repository may install it directly")


def _check_reversible(release: Release) -> Iterator[Finding]:
    if not release.data.reversible and release.policy.consent is not Consent.LOCAL:
        yield warning(
            "data",
            f"{release.path}: is not reversible, so devices ask for local consent, but its policy says {release.policy.consent}",
        )
