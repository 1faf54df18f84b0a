"""The stories in which a boot loader has a part, once per loader but the simulated one, which goes through all stories."""

from __future__ import annotations

from tidewaiter_core.model import SlotName
from tidewaiter_updater.phases import Phase

from tests.faults.crash_explorer.backends import GRUB, SYSTEMD_BOOT, UBOOT, Backend
from tests.faults.crash_explorer.bases import after_first_update
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import Made, made
from tests.faults.crash_explorer.scenario import Scenario, until_canceled, without_state
from tests.sim.storage import Content


def _on(backend: Backend) -> list[Scenario]:
    name = backend.name

    def release(version: str = "2.0", sequence: int = 2, *, security_epoch: int = 0) -> Made:
        has_kernels = backend is SYSTEMD_BOOT
        return made(version, sequence, security_epoch=security_epoch, has_kernels=has_kernels)

    return [
        Scenario(
            name=f"{name}: full",
            tells=f"A healthy release that closes the door to older ones, on a device that starts with {name}.",
            end=End.COMMITS,
            backend=backend,
            offered=lambda: release(security_epoch=1),
        ),
        Scenario(
            name=f"{name}: failing health",
            tells=f"The new release does not pass its checks, on a device that starts with {name}.",
            end=End.ROLLS_BACK,
            backend=backend,
            offered=release,
            given={"is_sick": True},
        ),
        Scenario(
            name=f"{name}: hanging trial",
            tells=f"The new release hangs until the watchdog resets it, on a device that starts with {name}.",
            end=End.ROLLS_BACK,
            backend=backend,
            offered=release,
            given={"hangs": True},
            # A rename that was cut may leave both names, and systemd-boot takes the one that has more tries.
            extra_tries=1 if backend is SYSTEMD_BOOT else 0,
        ),
        Scenario(
            name=f"{name}: cancel in ARMED",
            tells=f"Canceled in the last moment before the restart, on a device that starts with {name}; later it is taken.",
            end=End.COMMITS,
            backend=backend,
            offered=release,
            play=until_canceled,
            at_first={"cancel_in": Phase.ARMED},
        ),
    ]


def _kernel(version: str = "2.0", sequence: int = 2) -> Made:
    return made(version, sequence, has_kernels=True)


def _with_two_kernels(backend: Backend) -> Content:
    return after_first_update(backend, offered=_kernel)


_KERNELS = (
    Scenario(
        name="systemd-boot: second update",
        tells="The second update of a device whose kernel images lie beside the slots: one of them is replaced.",
        end=End.COMMITS,
        backend=SYSTEMD_BOOT,
        offered=lambda: _kernel("3.0", 3),
        known=lambda: (_kernel(), made("1.0", 1)),
        base=_with_two_kernels,
        home=SlotName.B,
    ),
    Scenario(
        name="systemd-boot: cancel in STAGED",
        tells="Canceled when slot and kernel image are ready; later it is taken.",
        end=End.COMMITS,
        backend=SYSTEMD_BOOT,
        offered=_kernel,
        play=until_canceled,
        at_first={"cancel_in": Phase.STAGED},
    ),
    Scenario(
        name="systemd-boot: lost state directory",
        tells="The cut also destroys what the updater had remembered; the kernel images and their names stay.",
        end=End.COMMITS,
        backend=SYSTEMD_BOOT,
        offered=_kernel,
        after_cut=without_state,
    ),
)

BOOT_STORIES: tuple[Scenario, ...] = (
    *(story for backend in (UBOOT, GRUB, SYSTEMD_BOOT) for story in _on(backend)),
    *_KERNELS,
)
