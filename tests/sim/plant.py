"""A small fleet for stories and integration tests: an `Enterprise`, images of several releases, devices with injectors.

`Plant` is the shared world of `make demo` and of tests/integration; sizes are parameters, so that a test can be quick.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sim.enterprise import Enterprise
from tests.sim.image import ImageSpec, build_image
from tests.sim.injector import InjectorSimulator
from tests.sim.machine import Machine, Watcher

FACTORY_VERSION = "1.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePlan:
    """A release to be built for the plant."""

    version: str
    sequence: int
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tables of the image's tidewaiter.toml that differ."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `tidewaiter-release build` (consent, hold_s, ...)."""
    rewrite_every: int = 10
    """See `ImageSpec.rewrite_every`."""


@dataclass(slots=True)
class Plant:
    home: Path
    image_bytes: int = 64 << 20
    ballast_bytes: int = 44 << 20
    site: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Image settings common to all releases."""
    enterprise: Enterprise = field(init=False)
    machines: dict[str, Machine] = field(default_factory=dict)
    injectors: dict[str, InjectorSimulator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.enterprise = Enterprise(self.home / "enterprise")

    def open(self) -> None:
        """PKI, repository, server, and the factory release, built like any other but never published."""
        self.enterprise.establish().start()
        self.build([ReleasePlan(version=FACTORY_VERSION, sequence=1)])

    def build(
        self, plans: list[ReleasePlan], *, done: Callable[[ReleasePlan], None] = lambda plan: None
    ) -> None:
        """Build and index all planned releases, two at a time; nothing is published yet."""

        def one(plan: ReleasePlan) -> None:
            image = self._image(plan)
            build = self.build_dir(plan.version)
            self.enterprise.build(image, build, version=plan.version, sequence=plan.sequence, **plan.options)
            done(plan)

        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(one, plans))

    def publish(self, version: str) -> int:
        """Sign and publish a built release and import it into the server; returns the server's release id."""
        self.enterprise.publish(self.build_dir(version))
        return self.enterprise.import_release(version)

    def build_dir(self, version: str) -> Path:
        return self.home / f"builds/{version}"

    def image_path(self, version: str) -> Path:
        return self.home / f"images/{version}.img"

    def add_device(self, serial: str, *, watcher: Watcher = lambda event, detail: None) -> Machine:
        """A factory-new device with its injector on the line, enrolled, still off."""
        identity = self.enterprise.enroll(serial)
        home = self.home / f"devices/{serial}"
        machine = Machine.manufacture(
            home, serial=serial, image=self.image_path(FACTORY_VERSION), identity=identity, watcher=watcher
        )
        self.machines[serial] = machine
        self.injectors[serial] = InjectorSimulator(
            machine.injector_link, home=home / "injector", generation="test"
        )
        return machine

    def close(self) -> None:
        for machine in self.machines.values():
            machine.shut_down()
        for injector in self.injectors.values():
            injector.stop()
        self.enterprise.stop()

    def _image(self, plan: ReleasePlan) -> Path:
        target = self.image_path(plan.version)
        target.parent.mkdir(parents=True, exist_ok=True)
        settings = {"server": {"url": f"https://localhost:{self.enterprise.device_port}"}}
        for tables in (self.site, plan.settings):
            for table, keys in tables.items():
                settings.setdefault(table, {}).update(keys)
        spec = ImageSpec(
            version=plan.version,
            sequence=plan.sequence,
            image_bytes=self.image_bytes,
            ballast_bytes=self.ballast_bytes,
            ballast_seed=plan.version,
            rewrite_every=plan.rewrite_every,
            settings=settings,
            trust_files={
                "root.json": self.enterprise.trusted_root,
                "server-root.pem": self.enterprise.server_ca,
            },
        )
        return build_image(spec, target, work=self.home / f"images/{plan.version}.tree")
