"""Every configuration key of every process, as one table per section.

One file configures all processes of a device, so that a key exists once. `image(...)` keys come from the signed
image only, `site(...)` keys may also be set in /etc/tidewaiter/conf.d, `required(...)` keys have no default.
What the declarations mean is in `keys`, how files are read in `config`.
"""

# ruff: noqa: RUF009 - the calls declare immutable fields

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tidewaiter_core.keys import Violation, image, required, site

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ACCOUNT: Final = r"[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}"
_HTTPS: Final = r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?"
_ROUTE: Final = r"DIRECT|PROXY (\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}"
_UNIT: Final = r"[A-Za-z0-9@:._\\-]{1,200}\.(service|socket|target|mount)"

DAY_S: Final = 86_400
MIB: Final = 1024 * 1024
QUIET_MIN_S: Final = 60


class LinkPolicy(StrEnum):
    """Which links of the server are followed."""

    STRICT = "strict"
    """Only those on the configured origin."""
    PATH_ONLY = "path-only"
    """Path and query on the configured origin, whatever host the link names."""


class RepositorySource(StrEnum):
    """Where the agent's relay finds the update repository."""

    SERVER = "server"
    ARTIFACTS = "artifacts"


class UpdateConsent(StrEnum):
    """Who decides that an update may be activated."""

    SERVER = "server"
    """Whatever the signed release asks for."""
    ASK = "ask"
    """Always ask at the device."""
    DENY = "deny"
    """Never."""


class BootBackend(StrEnum):
    """The boot loader of the device, which decides by its own environment which slot it starts."""

    SIMULATED = "simulated"
    """None: a file with U-Boot's layout, for demo and tests."""
    UBOOT = "uboot"
    GRUB = "grub"
    SYSTEMD_BOOT = "systemd-boot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What this device is."""

    product: str = required("Product name in release documents.", hint='"contrast-injector"', pattern=_NAME)
    hw: str = required("Hardware identity a release must list.", hint='"rev-c"', pattern=_NAME)
    model: str = required("Model name as on the type plate.", hint='"Injector 200"')
    udi_di: str = image("", "Device identifier (UDI-DI) of the model.")
    provisioned_file: Path = image(
        Path("/var/lib/tidewaiter/provisioned.json"), "Serial number and tenant, written once in the factory."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the processes keep state and meet each other."""

    state_dir: Path = image(Path("/var/lib/tidewaiter"), "State of the components, one folder each.")
    run_dir: Path = image(Path("/run/tidewaiter"), "Sockets; empty after a boot.")
    audit_dir: Path = image(Path("/var/lib/tidewaiter/audit"), "Audit chains, one folder per component.")
    trust_dir: Path = image(Path("/var/lib/tidewaiter/trust"), "Trusted update metadata.")

    @property
    def hal_state_dir(self) -> Path:
        return self.state_dir / "hal"

    @property
    def updater_state_dir(self) -> Path:
        return self.state_dir / "updater"

    @property
    def agent_state_dir(self) -> Path:
        return self.state_dir / "agent"

    @property
    def hal_monitor_socket(self) -> Path:
        return self.run_dir / "hal" / "monitor.sock"

    @property
    def hal_control_socket(self) -> Path:
        return self.run_dir / "hal" / "control.sock"

    @property
    def updater_socket(self) -> Path:
        return self.run_dir / "updater.sock"

    @property
    def updater_local_socket(self) -> Path:
        return self.run_dir / "updater-local.sock"

    @property
    def relay_socket(self) -> Path:
        return self.run_dir / "agent" / "relay.sock"

    @property
    def agent_local_socket(self) -> Path:
        return self.run_dir / "agent" / "local.sock"

    @property
    def migrate_dir(self) -> Path:
        """Root's own: lock and progress of tidewaiter-migrate."""
        return self.run_dir / "migrate"

    @property
    def settle_flag(self) -> Path:
        return self.run_dir / "settle" / "now"

    @property
    def reboot_flag(self) -> Path:
        return self.run_dir / "reboot" / "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Accounts that may talk to a socket; a name or a decimal id."""

    agent_user: str = image("tidewaiter-agent", "User of the agent.", pattern=_ACCOUNT)
    updater_user: str = image("tidewaiter-updater", "User of the updater.", pattern=_ACCOUNT)
    operator_group: str = image("tidewaiter-operator", "May consent at the device.", pattern=_ACCOUNT)
    monitor_group: str = image("tidewaiter-monitor", "May read the injector's state.", pattern=_ACCOUNT)
    local_group: str = image("tidewaiter-local", "May use the local update socket.", pattern=_ACCOUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The one server this device talks to."""

    url: str = required(
        "Base address of the server.",
        hint='"https://updates.example.com"',
        pattern=_HTTPS,
        expect="an https:// address without user, query or fragment",
    )
    tenant: str = image("default", "Tenant in the server's paths.", pattern=_NAME)
    ca_file: Path = required(
        "CA certificate (PEM) the server must chain to.", hint='"/usr/lib/tidewaiter/server-ca.pem"'
    )
    links: LinkPolicy = image(LinkPolicy.STRICT, "Which links of the server are followed.")
    repository: RepositorySource = image(
        RepositorySource.SERVER, "Where update metadata and targets come from."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """How often the server is asked."""

    interval_min_s: int = site(
        60, "Shortest time between polls, whatever the server says.", low=1, high=DAY_S
    )
    interval_max_s: int = site(
        900, "Longest time between polls, whatever the server says.", low=1, high=DAY_S
    )
    clamp_min_s: int = image(15, "Lower bound of the two others; below 15 only on a bench.", low=1, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The way to the server."""

    proxy_route: tuple[str, ...] = site(
        ("DIRECT",),
        "Routes in the order they are tried.",
        pattern=_ROUTE,
        expect='"DIRECT" or "PROXY host:port"',
    )
    max_up_kib_per_s: int = site(0, "Upload limit, 0 = none.", low=0, high=1_000_000)
    max_down_kib_per_s: int = site(0, "Download limit, 0 = none.", low=0, high=1_000_000)
    connect_timeout_s: int = site(10, "Time for a connection including TLS.", low=1, high=120)
    request_timeout_s: int = site(30, "Time without a byte before a request is given up.", low=1, high=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What the inventory tells about the hospital's network; nothing unless the site switches it on."""

    send_hostname: bool = site(False, "Report the host name.")
    send_local_ip: bool = site(False, "Report local addresses.")
    send_mac: bool = site(False, "Report hardware addresses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Switches; a site file can switch off what the image offers, not on what it does not."""

    updates: bool = site(True, "Software updates.", only_restricts=True)
    telemetry: bool = site(True, "Regular readings.", only_restricts=True)
    long_poll: bool = site(
        True, "A waiting request that makes the server's wishes immediate.", only_restricts=True
    )
    sessions: bool = site(True, "Remote sessions.", only_restricts=True)
    diagnostics: bool = site(True, "Diagnostic bundles on request.", only_restricts=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """Who agrees to what."""

    update: UpdateConsent = site(UpdateConsent.SERVER, "Who agrees to the activation of an update.")
    ask_timeout_s: int = site(300, "How long a question stays on the screen.", low=10, high=DAY_S)
    grant_max_s: int = site(14_400, "Longest validity of a consent given in advance.", low=60, high=7 * DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Regular readings."""

    interval_s: int = site(300, "Time between readings.", low=5, high=DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The audit chains of this device."""

    budget_bytes_agent: int = image(64 * MIB, "Room of the agent's chain.", low=MIB, high=4096 * MIB)
    budget_bytes_hal: int = image(32 * MIB, "Room of the hal's chain.", low=MIB, high=4096 * MIB)
    budget_bytes_updater: int = image(16 * MIB, "Room of the updater's chain.", low=MIB, high=4096 * MIB)
    segment_bytes: int = image(MIB, "Length at which a new segment starts.", low=4096, high=64 * MIB)
    retention_days: int = site(365, "How long records are kept if there is room.", low=1, high=36_500)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedDriver:
    """An injector driver that may be loaded."""

    name: str
    """Entry point name."""
    distribution: str
    """Python distribution that has to provide it; another one of the same name is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hal:
    """The injector and its serial line."""

    driver: str = image("smp-reference", "Driver for this injector.", pattern=_NAME)
    driver_allow: tuple[AllowedDriver, ...] = image(
        (AllowedDriver(name="smp-reference", distribution="tidewaiter"),), "Drivers that may be loaded."
    )
    device: Path = image(Path("/dev/tidewaiter/injector"), "Serial device, a name that udev gives.")
    baud: int = image(115_200, "Speed of the line.", low=300, high=4_000_000)
    bench: bool = image(False, "No patient can be connected; allows shorter waiting times.")
    idle_pressure_limit_kpa: int = image(
        50, "Pressure above which the injector is not idle.", low=0, high=10_000
    )
    quiet_after_injection_s: int = image(
        300, "Rest after an injection before anything reboots.", low=1, high=DAY_S
    )
    accept_side_effects: tuple[str, ...] = image(
        (), "Drivers whose reads change the injector, accepted by name."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Updater:
    """Slots, boot environment and what has to work after an update."""

    slot_a: Path = required("Block device or file of slot A.", hint='"/dev/disk/by-partlabel/root-a"')
    slot_b: Path = required("Block device or file of slot B.", hint='"/dev/disk/by-partlabel/root-b"')
    boot_backend: BootBackend = image(BootBackend.SIMULATED, "The boot loader of this device.")
    boot_env: Path | None = image(
        None,
        "Where the boot environment is: a file (simulated), the block device with both copies (uboot), the folder with "
        "env_a and env_b (grub). Not with systemd-boot.",
    )
    boot_lock_file: Path = image(
        Path("/var/lock/fw_printenv.lock"), "Lock file that fw_setenv takes while it writes (uboot)."
    )
    esp: Path | None = image(None, "Where the EFI system partition is mounted (systemd-boot).")
    watchdog_tells: bool = image(
        False, "The board's watchdog driver is proven to report in bootstatus that it reset the board."
    )
    cmdline_file: Path = image(Path("/proc/cmdline"), "Names the slot that was booted.")
    kernel_files: Path = image(
        Path("/"), "Folder above the proc and sys that tell where / comes from; another one only on a bench."
    )
    image_identity: Path = image(Path("/usr/lib/tidewaiter/image.json"), "Identity of the running image.")
    tuf_root: Path = image(
        Path("/usr/lib/tidewaiter/root.json"), "First trusted root of the update repository."
    )
    floor_file: Path = image(
        Path("/usr/lib/tidewaiter/floor.json"), "Lowest version and time this image accepts."
    )
    media_root: Path | None = image(
        None, 'First trusted root of the media repository (sticks), "" = no updates from media.'
    )
    idle_exit_s: int = image(
        300, "Ends when there was nothing to do for so long, 0 = never.", low=0, high=DAY_S
    )
    health_units: tuple[str, ...] = image(
        (), "Units that have to be active after an update.", pattern=_UNIT, expect="a unit name"
    )
    max_fetch_bytes: int = site(
        0, "Most bytes fetched for one update, 0 = the release's cap only.", low=0, high=2**48
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The product's versioned data, if the image says that it keeps any."""

    sets_dir: Path = image(
        Path("/data/sets"), "Where the data sets lie, one folder per schema, all on one file system."
    )
    programs_dir: Path = image(Path("/usr/lib/tidewaiter/migrate.d"), "Migration programs of the image.")
    deadline_s: int = image(600, "Time for the whole data step of a release.", low=1, high=600)
    keep_days: int = image(
        30,
        "How long a replaced set is kept at least, even when no slot that may boot reads it.",
        low=30,
        high=3650,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration of a device."""

    device: Device
    paths: Paths
    peers: Peers
    server: Server
    poll: Poll
    network: Network
    privacy: Privacy
    features: Features
    consent: Consent
    telemetry: Telemetry
    audit: Audit
    hal: Hal
    updater: Updater
    data: Data

    def violations(self) -> Iterator[Violation]:
        """Values that are fine alone but not together."""
        clamp_s = self.poll.clamp_min_s
        for name, value_s in (
            ("interval_min_s", self.poll.interval_min_s),
            ("interval_max_s", self.poll.interval_max_s),
        ):
            if value_s < clamp_s:
                yield Violation(key=f"poll.{name}", text=f"is below the minimum of {clamp_s}")
        if self.poll.interval_min_s > self.poll.interval_max_s:
            text = f"is above poll.interval_max_s = {self.poll.interval_max_s}"
            yield Violation(key="poll.interval_min_s", text=text)
        if not self.hal.bench and self.hal.quiet_after_injection_s < QUIET_MIN_S:
            text = f"is below the minimum of {QUIET_MIN_S} (less only with hal.bench = true)"
            yield Violation(key="hal.quiet_after_injection_s", text=text)
        if self.hal.driver not in {allowed.name for allowed in self.hal.driver_allow}:
            yield Violation(key="hal.driver", text="is not in hal.driver_allow")
        if self.updater.slot_a == self.updater.slot_b:
            yield Violation(key="updater.slot_b", text="is the same device as updater.slot_a")
        if self.updater.kernel_files != Path("/") and not self.hal.bench:
            text = "is not / (anything else only with hal.bench = true)"
            yield Violation(key="updater.kernel_files", text=text)
        yield from self._boot_violations()
        if self.audit.segment_bytes * 4 > min(
            self.audit.budget_bytes_agent, self.audit.budget_bytes_hal, self.audit.budget_bytes_updater
        ):
            yield Violation(
                key="audit.segment_bytes", text="is more than a quarter of the smallest audit budget"
            )

    def _boot_violations(self) -> Iterator[Violation]:
        """Each boot loader needs its own place, and the other one would not be used."""
        backend = self.updater.boot_backend
        uses_esp = backend is BootBackend.SYSTEMD_BOOT
        for name, value, is_used in (
            ("boot_env", self.updater.boot_env, not uses_esp),
            ("esp", self.updater.esp, uses_esp),
        ):
            if (value is not None) is not is_used:
                text = "is needed" if is_used else "is of no use"
                yield Violation(
                    key=f"updater.{name}", text=f'{text} with updater.boot_backend = "{backend.value}"'
                )
