"""The stories in which a boot loader has a part, once per loader but the simulated one, which goes through all stories."""

from __future__ import annotations

from tidewaiter_updater.phases import Phase

from tests.faults.crash_explorer.backends import BACKENDS, Backend
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import made
from tests.faults.crash_explorer.scenario import Scenario, until_canceled


def _on(backend: Backend) -> list[Scenario]:
    name = backend.name
    return [
        Scenario(
            name=f"{name}: full",
            tells=f"A healthy release that closes the door to older ones, on a device that starts with {name}.",
            end=End.COMMITS,
            backend=backend,
            offered=lambda: made("2.0", 2, security_epoch=1),
        ),
        Scenario(
            name=f"{name}: failing health",
            tells=f"The new release does not pass its checks, on a device that starts with {name}.",
            end=End.ROLLS_BACK,
            backend=backend,
            given={"is_sick": True},
        ),
        Scenario(
            name=f"{name}: hanging trial",
            tells=f"The new release hangs until the watchdog resets it, on a device that starts with {name}.",
            end=End.ROLLS_BACK,
            backend=backend,
            given={"hangs": True},
            # A rename that was cut may leave both names, and systemd-boot takes the one that has more tries.
            extra_tries=1 if name == "systemd-boot" else 0,
        ),
        Scenario(
            name=f"{name}: cancel in ARMED",
            tells=f"Canceled in the last moment before the restart, on a device that starts with {name}; later it is taken.",
            end=End.COMMITS,
            backend=backend,
            play=until_canceled,
            at_first={"cancel_in": Phase.ARMED},
        ),
    ]


BOOT_STORIES: tuple[Scenario, ...] = tuple(story for backend in BACKENDS[1:] for story in _on(backend))
