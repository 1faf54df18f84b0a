"""The commands of the TUF conformance suite, each over the device's own trust session.

What a device has beside its cache lies in `<metadata-dir>.device`: the root that its image carries, and its floors. Switched off
are only this product's own rules: which role signs which path, and how a path may look.

The commands are those of theupdateframework/tuf-conformance, CLIENT-CLI.md. Exit 0 done, 1 not.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tidewaiter_core.clock import SystemClock
from tidewaiter_core.durable import make_directory
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_updater.errors import TrustError
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.trust_tuf import TufSession
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from tests.conformance.http_source import LoopbackSource

REPOSITORY: Final = "online"
_TARGET_LIMIT_BYTES: Final = 64 * 1024 * 1024


class ConformanceDevice:
    """A device whose cache is at `metadata_dir`."""

    def __init__(self, metadata_dir: Path) -> None:
        self._metadata_dir = metadata_dir
        self._state = metadata_dir.with_name(f"{metadata_dir.name}.device")

    def init(self, trusted_root: Path) -> None:
        """Build the image, so to say."""
        make_directory(self._state)
        shutil.copyfile(trusted_root, self._state / "root.json")
        # The suite looks here; the session itself always starts from the image.
        shutil.copyfile(trusted_root, self._metadata_dir / "root.json")

    def update(
        self,
        metadata_url: str,
        *,
        targets: Sequence[str] = (),
        target_url: str = "",
        target_dir: Path | None = None,
    ) -> None:
        """Refresh, then fetch the targets in their order; nothing is kept before the floors have been asked.

        Raises:
            TidewaiterError: The first thing that was wrong.
        """
        floors = FloorStore(self._state / "floor.json")
        session = TufSession(
            LoopbackSource(metadata_url, target_url),
            metadata_dir=self._metadata_dir,
            root=(self._state / "root.json").read_bytes(),
            trusted_now=floors.trusted_now(SystemClock()),
            floors=floors.versions(REPOSITORY),
        )
        with session.explained():
            session.refresh()
            floors.record_session(REPOSITORY, session.finish(), proven_utc=None)
            for name in targets:
                target = session.target(name)
                if target is None:
                    raise TrustError(f"{name}: the repository signs no such target", code="trust.target")
                if target_dir is None:
                    raise TrustError(f"{name}: no --target-dir to keep it in", code="trust.target")
                floors.record_session(REPOSITORY, session.finish(), proven_utc=None)
                place = target_dir / quote(name, safe="")
                if not _is_there(place, target.info):
                    place.write_bytes(session.fetch(target.info, limit_bytes=_TARGET_LIMIT_BYTES))


def _is_there(place: Path, info: TargetFile) -> bool:
    try:
        info.verify_length_and_hashes(place.read_bytes())
    except (OSError, LengthOrHashMismatchError):
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tuf-client", description="tidewaiter as a TUF client, for conformance tests."
    )
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[], help="may be given more than once")
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="trust this root").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh", help="update the metadata")
    commands.add_parser("download", help="fetch the named targets")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = ConformanceDevice(arguments.metadata_dir)
    try:
        if arguments.command == "init":
            device.init(arguments.trusted_root)
        elif arguments.command == "refresh":
            device.update(arguments.metadata_url)
        else:
            device.update(
                arguments.metadata_url,
                targets=arguments.target_name,
                target_url=arguments.target_base_url,
                target_dir=arguments.target_dir,
            )
    except (TidewaiterError, OSError) as err:
        sys.stderr.write(f"tuf-client: {getattr(err, 'code', 'error')}: {err}\n")
        return 1
    return 0
