"""A release document in words, for `inspect` and for whoever is asked to sign one."""

from __future__ import annotations

from collections.abc import Iterator

from tidewaiter_core.log import escape
from tidewaiter_core.payload import Release
from tidewaiter_core.payload.release import FirmwareComponent, UkiComponent


def release_lines(release: Release) -> Iterator[str]:
    """Everything a person decides by, one fact a line."""
    slot = release.slot
    yield f"release {release.product} {release.version}"
    yield f"  digest        {release.digest} (txn {release.txn})"
    yield f"  sequence      {release.sequence}, security epoch {release.security_epoch}"
    yield f"  built         {release.built_utc:%Y-%m-%dT%H:%M:%SZ}"
    yield f"  hardware      {', '.join(escape(name) for name in release.hw)}"
    yield f"  from          sequence {release.from_range.min_sequence}..{release.from_range.max_sequence}"
    yield f"  slot          {slot.name}, {slot.fs}, {slot.image_bytes} bytes, {slot.chunk_count} chunks"
    yield f"  image_root    {slot.image_root}"
    yield f"  fetch         {slot.index.length} + {slot.pack.length} bytes, at most {release.policy.max_fetch_bytes}"
    yield f"  pack          sha256 {slot.pack.sha256}"
    if slot.verity is not None:
        yield f"  verity        root hash {slot.verity.root_hash}"
    for patch in slot.patches:
        yield f"  patch         {patch.length} bytes from {patch.from_root}"
    for part in release.components:
        if isinstance(part, UkiComponent):
            yield f"  kernel        slot {part.slot}, {part.length} bytes, sha256 {part.sha256}"
        elif isinstance(part, FirmwareComponent):
            yield f"  firmware      {part.board} {part.version}, {part.length} bytes, sha256 {part.sha256}"
    for board, allowed in sorted(release.firmware_compat.items()):
        yield f"  board         {board} {allowed.min}..{allowed.max}"
    if release.sbom is not None:
        yield f"  sbom          {release.sbom.path}, {release.sbom.length} bytes"
    yield (
        f"  policy        consent {release.policy.consent}, risk {release.policy.risk}, "
        f"activation {release.policy.activation}, {release.policy.tries} tries"
    )
    yield (
        f"  health        {', '.join(release.health.required) or 'nothing required'}, "
        f"deadline {release.health.deadline_s} s, hold {release.health.hold_s} s"
    )
    yield (
        f"  data          writes {release.data.writes}, reads {release.data.reads_min}..{release.data.reads_max}, "
        f"{'reversible' if release.data.reversible else 'NOT reversible'}"
    )
    if release.rollout is not None:
        yield (
            f"  rollout       {release.rollout.percent_x100 / 100:g} % "
            f"from {release.rollout.not_before_utc:%Y-%m-%dT%H:%M:%SZ}"
        )
    for tag, text in sorted(release.notes.items()):
        yield f"  notes [{tag}]"
        yield from (f"    {escape(line)}" for line in text.split("\n"))
