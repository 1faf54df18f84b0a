"""A device whose trust sessions a test can drive: state directory, embedded roots, floors, a relay and a stick."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_release.repository import export
from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.sources import Patience, RelaySource
from tidewaiter_updater.trust_call import TrustSession
from tidewaiter_updater.trust_session import verify
from tidewaiter_updater.trust_tuf import TufSession
from tidewaiter_updater.trust_wire import Repository, Subject, Verified

from tests.sim.relay import Relay
from tests.sim.repository import TestRepository

STICK = "directory:/media/stick"
PAST = datetime(2020, 1, 1, tzinfo=UTC)


class TrustDevice:
    """A device with a state directory and an embedded root; sessions run in this process, floors as in the service."""

    def __init__(self, repository: TestRepository, relay: Relay, state: Path) -> None:
        self.relay = relay
        self.state = state
        self.state.mkdir()
        self.root = repository.trusted_root.read_bytes()
        (state / "root.json").write_bytes(self.root)
        self.floors = FloorStore(state / "floor.json", image_utc=PAST)

    @property
    def metadata(self) -> Path:
        return self.state / "tuf" / "online"

    def session(self, path: str, *, now: datetime | None = None) -> Verified:
        source = RelaySource(
            self.relay.socket_path,
            clock=SystemClock(),
            patience=Patience(backoff_base_s=0.001, backoff_cap_s=0.002),
        )
        trusted_now = now or self.floors.trusted_now(SystemClock())
        session = TufSession(
            source,
            metadata_dir=self.metadata,
            root=self.root,
            trusted_now=trusted_now,
            floors=self.floors.versions("online"),
        )
        verified = verify(session, Subject.RELEASE, path)
        self.floors.record_session("online", verified.versions, proven_utc=verified.proven_utc)
        return verified

    def code(self, path: str, *, now: datetime | None = None) -> str:
        """How a session that must fail ends; it must not move a floor."""
        before = self.floors.versions("online")
        with pytest.raises(TidewaiterError) as caught:
            self.session(path, now=now)
        assert self.floors.versions("online") == before
        assert isinstance(caught.value, TrustError | SourceError)
        return caught.value.code

    def child(self, **more: object) -> TrustSession:
        fields: dict[str, Any] = {
            "state_dir": self.state,
            "roots": {Repository.ONLINE: self.state / "root.json"},
            "relay_socket": self.relay.socket_path,
            "floors": self.floors,
            "clock": SystemClock(),
        }
        return TrustSession(**fields | more)


class Stick:
    """A stick that the release tool made, in the device's bay."""

    def __init__(self, device: TrustDevice, repository: TestRepository, directory: Path) -> None:
        self.device = device
        self.repository = repository
        self.directory = directory
        self.roots = {
            Repository.ONLINE: device.state / "root.json",
            Repository.MEDIA: device.state / "media-root.json",
        }
        self.roots[Repository.MEDIA].write_bytes(
            (repository.store.media.metadata / "1.root.json").read_bytes()
        )
        self.bay = MediaBay()
        self.write("1.0")

    def write(self, *versions: str) -> None:
        """Make the stick again."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        export(self.repository.store, self.directory, versions, clock=self.repository.clock)

    def session(self, directory: Path | None = None) -> TrustSession:
        """A session that finds `directory`, or else what `write` made, as the medium STICK."""
        place = directory or self.directory / "TIDEWAITER"
        self.bay.insert(STICK, DirectorySource(os.open(place, os.O_PATH | os.O_DIRECTORY)))
        return self.device.child(roots=self.roots, media=self.bay)
