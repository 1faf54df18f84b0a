"""The kept corpora: inputs that once reached new code or once were findings, by target, replayed by every `make test`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.target import Target

FOLDER = Path(__file__).parent / "corpus"
KEPT_BYTES = 2048
"""Longer inputs are left out: the repository is for people, and the seeds make long inputs anew."""


def kept(target: Target) -> Iterator[Path]:
    """The files of one target."""
    yield from sorted((FOLDER / target.name).glob("*"))


def keep(target: Target, data: bytes) -> Path:
    """Add one input under the name of its content."""
    path = FOLDER / target.name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_seeds(target: Target, folder: Path) -> None:
    """Put the built inputs of a target where libFuzzer looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(data)
