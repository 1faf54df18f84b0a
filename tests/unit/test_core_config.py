"""Strict configuration: what is wrong is named, nothing is reset."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from tidewaiter_core import config
from tidewaiter_core.errors import ConfigError
from tidewaiter_core.keys import MISSING, Scope, describe
from tidewaiter_core.settings import AllowedDriver, LinkPolicy, Settings, UpdateConsent

REQUIRED = {
    "device.product": '"contrast-injector"',
    "device.hw": '"rev-c"',
    "device.model": '"Injector 200"',
    "server.url": '"https://updates.example.com:8443/base"',
    "server.ca_file": '"/usr/lib/tidewaiter/ca.pem"',
    "updater.slot_a": '"/dev/slot-a"',
    "updater.slot_b": '"/dev/slot-b"',
}
NEEDED_BY_DEFAULT = {"updater.boot_env": '"/dev/bootenv"'}


class Device:
    """The two places configuration comes from."""

    def __init__(self, root: Path) -> None:
        self.image_file = root / "tidewaiter.toml"
        self.conf_dir = root / "conf.d"
        self.conf_dir.mkdir()
        self.image()

    def image(self, *lines: str, without: str = "") -> None:
        """Write the image file: required keys, then dotted `lines`, which win."""
        keys = {key: value for key, value in (REQUIRED | NEEDED_BY_DEFAULT).items() if key != without}
        keys |= dict(line.split(" = ", 1) for line in lines)
        self.image_file.write_text("".join(f"{key} = {value}\n" for key, value in keys.items()))

    def site(self, text: str, name: str = "site.toml") -> Path:
        path = self.conf_dir / name
        path.write_text(text)
        return path

    def load(self) -> Settings:
        return config.load(self.image_file, self.conf_dir)

    def refusal(self) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load()
        assert caught.value.code == "core.config"
        assert str(caught.value).isprintable()
        return str(caught.value)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_required_keys_alone_are_a_configuration(device: Device) -> None:
    settings = device.load()
    assert settings.device.product == "contrast-injector"
    assert settings.poll.interval_min_s == 60
    assert settings.server.links is LinkPolicy.STRICT
    assert settings.hal.driver_allow == (AllowedDriver(name="smp-reference", distribution="tidewaiter"),)
    assert settings.updater.media_root is None


def test_a_missing_folder_of_site_files_is_no_site_configuration(device: Device) -> None:
    device.conf_dir.rmdir()
    assert device.load().poll.interval_min_s == 60


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_required_key_is_refused_with_what_to_set(device: Device, key: str) -> None:
    device.image(without=key)
    assert re.fullmatch(
        rf"{re.escape(str(device.image_file))}: {key} is not set; set it, for example {key} = \".+\"",
        device.refusal(),
    )


def test_a_site_file_wins_over_the_image_and_a_later_one_over_an_earlier(device: Device) -> None:
    device.image("poll.interval_max_s = 100")
    device.site("[poll]\ninterval_max_s = 300\ninterval_min_s = 30\n", "10-a.toml")
    device.site("poll.interval_max_s = 400\n", "20-b.toml")
    settings = device.load()
    assert (settings.poll.interval_min_s, settings.poll.interval_max_s) == (30, 400)


def test_files_that_editors_leave_behind_are_not_configuration(device: Device) -> None:
    device.site("garbage", ".#site.toml")
    device.site("garbage", "site.toml~")
    device.site("garbage", "README")
    device.load()


def test_a_value_below_the_minimum_names_file_key_value_and_bound(device: Device) -> None:
    file = device.site("poll.interval_min_s = 2\n")
    assert device.refusal() == f"{file}: poll.interval_min_s = 2 is below the minimum of 15"


def test_a_value_above_the_maximum_names_file_key_value_and_bound(device: Device) -> None:
    file = device.site("telemetry.interval_s = 86401\n")
    assert device.refusal() == f"{file}: telemetry.interval_s = 86401 is above the maximum of 86400"


@pytest.mark.parametrize("value", ["5", "86400"])
def test_the_bounds_themselves_are_allowed(device: Device, value: str) -> None:
    device.site(f"telemetry.interval_s = {value}\n")
    assert device.load().telemetry.interval_s == int(value)


def test_an_image_key_in_a_site_file_is_refused(device: Device) -> None:
    file = device.site('server.url = "https://evil.example.com"\n')
    assert device.refusal() == (
        f'{file}: server.url = "https://evil.example.com" can only be set by the signed image, not by a site file; remove it'
    )


def test_every_image_key_is_refused_in_a_site_file(device: Device) -> None:
    sections = get_type_hints(Settings)
    image_keys = [
        f"{section}.{field.name}"
        for section, cls in sections.items()
        for field in dataclasses.fields(cls)
        if describe(field).scope is Scope.IMAGE
    ]
    assert len(image_keys) > 30
    for key in image_keys:
        device.site(f"{key} = 1\n")
        assert "can only be set by the signed image" in device.refusal()


def test_an_unknown_key_is_refused_and_the_nearest_is_named(device: Device) -> None:
    file = device.site("poll.intervall_min_s = 60\n")
    assert device.refusal() == (
        f"{file}: poll.intervall_min_s is no key of this program; did you mean poll.interval_min_s"
    )


def test_the_value_of_an_unknown_key_is_not_shown(device: Device) -> None:
    device.site('network.proxy_password = "hunter2-canary"\n')
    assert "hunter2" not in device.refusal()


def test_credentials_in_a_route_are_not_shown(device: Device) -> None:
    device.site('network.proxy_route = ["PROXY http://user:hunter2@proxy:3128"]\n')
    message = device.refusal()
    assert "hunter2" not in message
    assert 'expected "DIRECT" or "PROXY host:port"' in message


def test_an_unknown_section_is_refused(device: Device) -> None:
    file = device.site("[polling]\ninterval_min_s = 60\n")
    assert device.refusal().startswith(
        f'{file}: "polling" is no section of this program; known are device, paths'
    )


def test_a_key_outside_a_section_is_refused(device: Device) -> None:
    device.site("interval_min_s = 60\n")
    assert "is no section" in device.refusal()


def test_a_section_that_is_no_table_is_refused(device: Device) -> None:
    file = device.site("poll = 60\n")
    assert device.refusal() == f"{file}: poll is expected to be a table [poll]"


@pytest.mark.parametrize(
    ("line", "expectation"),
    [
        ("poll.interval_min_s = true", "an integer, found a boolean"),
        ('poll.interval_min_s = "60"', "an integer, found a string"),
        ("poll.interval_min_s = 60.0", "an integer, found a float"),
        ("poll.interval_min_s = [60]", "an integer, found a list"),
        ("poll.interval_min_s = {a = 1}", "an integer, found a table"),
        ("poll.interval_min_s = 2026-01-01", "an integer, found a date or time"),
        ("privacy.send_mac = 1", "a boolean, found an integer"),
        ('privacy.send_mac = "false"', "a boolean, found a string"),
        ('network.proxy_route = "DIRECT"', "a list, found a string"),
        ("network.proxy_route = [1]", "a string, found an integer"),
        ('network.proxy_route = ["SOCKS a:1"]', 'expected "DIRECT" or "PROXY host:port"'),
        ('network.proxy_route = ["DIRECT", "DIRECT"]', "contains an item twice"),
        ('consent.update = "perhaps"', 'one of "server", "ask", "deny"'),
        ("consent.update = 1", 'one of "server", "ask", "deny"'),
    ],
)
def test_a_site_value_of_the_wrong_kind_is_refused(device: Device, line: str, expectation: str) -> None:
    file = device.site(line + "\n")
    message = device.refusal()
    assert message.startswith(f"{file}: {line.partition(' =')[0]} = ")
    assert expectation in message


@pytest.mark.parametrize(
    ("line", "expectation"),
    [
        ('server.url = "http://updates.example.com"', "expected an https:// address"),
        ('server.url = "https://user:pw@updates.example.com"', "expected an https:// address"),
        ('server.url = "https://updates.example.com/?a=1"', "expected an https:// address"),
        ('server.url = "HTTPS://updates.example.com"', "expected an https:// address"),
        ('server.url = "https://"', "expected an https:// address"),
        ('server.ca_file = "ca.pem"', "an absolute path"),
        ('server.ca_file = ""', "an absolute path"),
        ("server.ca_file = 1", "an absolute path, found an integer"),
        ('paths.state_dir = "/var/lib/../../etc"', 'a path without ".."'),
        ('device.product = ""', "does not match"),
        ('device.product = "a/../b"', "does not match"),
        ('device.model = "  "', "must not be empty"),
        ('device.model = "a\\nb"', "printable"),
        ("hal.driver_allow = [{name = 'a'}]", "the keys name, distribution and no others"),
        (
            "hal.driver_allow = [{name = 'a', distribution = 'b', c = 'd'}]",
            "the keys name, distribution and no others",
        ),
        ("hal.driver_allow = [{name = 'a', distribution = 1}]", "a string, found an integer"),
        ("hal.driver_allow = []", "hal.driver_allow"),
        ('hal.driver = "new-era"', "is not in hal.driver_allow"),
        ('updater.health_units = ["/bin/sh"]', "expected a unit name"),
        ('updater.slot_b = "/dev/slot-a"', "is the same device as updater.slot_a"),
        ('updater.boot_backend = "lilo"', 'one of "simulated", "uboot", "grub", "systemd-boot"'),
        ('updater.boot_env = ""', 'is needed with updater.boot_backend = "simulated"'),
        ('updater.esp = "/boot/efi"', 'is of no use with updater.boot_backend = "simulated"'),
        ('updater.boot_backend = "systemd-boot"', 'is of no use with updater.boot_backend = "systemd-boot"'),
        ('updater.kernel_files = "/tmp"', "only with hal.bench = true"),
        ("audit.segment_bytes = 16777216", "is more than a quarter of the smallest audit budget"),
    ],
)
def test_an_image_value_of_the_wrong_kind_is_refused(device: Device, line: str, expectation: str) -> None:
    device.image(line)
    message = device.refusal()
    assert expectation in message
    assert "hunter2" not in message and ":pw@" not in message


def test_an_interval_with_its_ends_swapped_is_refused(device: Device) -> None:
    file = device.site("poll.interval_min_s = 1000\n")
    assert device.refusal() == f"{file}: poll.interval_min_s = 1000 is above poll.interval_max_s = 900"


def test_a_bench_image_lowers_the_bound_of_the_poll_interval(device: Device) -> None:
    device.image("poll.clamp_min_s = 1", "poll.interval_min_s = 1", "poll.interval_max_s = 1")
    assert device.load().poll.interval_max_s == 1


def test_a_site_cannot_lower_the_bound_of_the_poll_interval(device: Device) -> None:
    device.site("poll.clamp_min_s = 1\n")
    assert "signed image" in device.refusal()


def test_the_rest_after_an_injection_is_at_least_a_minute(device: Device) -> None:
    device.image("hal.quiet_after_injection_s = 59")
    assert "hal.quiet_after_injection_s = 59 is below the minimum of 60" in device.refusal()


def test_a_bench_allows_a_short_rest_after_an_injection(device: Device) -> None:
    device.image("hal.quiet_after_injection_s = 1", "hal.bench = true")
    assert device.load().hal.quiet_after_injection_s == 1


def test_a_site_can_switch_a_feature_off(device: Device) -> None:
    device.site("features.sessions = false\n")
    assert not device.load().features.sessions


def test_a_site_cannot_switch_on_what_the_image_switched_off(device: Device) -> None:
    device.image("features.sessions = false")
    file = device.site("features.sessions = true\n")
    assert device.refusal() == (
        f"{file}: features.sessions = true is refused: {device.image_file} switched it off, "
        "a site file can only switch it off, not on"
    )


def test_consent_is_read_as_a_choice(device: Device) -> None:
    device.site('consent.update = "ask"\n')
    assert device.load().consent.update is UpdateConsent.ASK


def test_a_key_given_twice_is_refused(device: Device) -> None:
    file = device.site("[poll]\ninterval_min_s = 60\ninterval_min_s = 70\n")
    message = device.refusal()
    assert message.startswith(f"{file}: is not valid TOML: ")
    assert "line 3" in message


def test_a_table_given_twice_is_refused(device: Device) -> None:
    device.site("[poll]\ninterval_min_s = 60\n[poll]\ninterval_max_s = 70\n")
    assert "is not valid TOML" in device.refusal()


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"\xef\xbb\xbf[poll]\n", "byte order mark"),
        (b"# caf\xe9\n", "byte 5 is not UTF-8"),
        (b"<html>", "is not valid TOML"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
        (b"#" * (1024 * 1024 + 1), "is longer than 1048576 bytes"),
    ],
    ids=["bom", "latin-1", "html", "nested", "long"],
)
def test_a_file_that_is_no_toml_is_refused(device: Device, content: bytes, finding: str) -> None:
    (device.conf_dir / "site.toml").write_bytes(content)
    assert finding in device.refusal()


def test_a_missing_image_file_is_refused(device: Device) -> None:
    device.image_file.unlink()
    assert (
        device.refusal()
        == f"{device.image_file}: there is no such file; the process does not start without it"
    )


def test_a_site_file_that_cannot_be_read_is_refused(device: Device) -> None:
    (device.conf_dir / "site.toml").mkdir()
    assert "site.toml: cannot be read (Is a directory)" in device.refusal()


def test_a_dangling_site_file_is_refused(device: Device) -> None:
    (device.conf_dir / "site.toml").symlink_to("gone")
    assert "site.toml: there is no such file" in device.refusal()


def test_a_file_in_place_of_the_folder_is_refused(device: Device) -> None:
    device.conf_dir.rmdir()
    device.conf_dir.write_text("")
    assert "the folder of site files cannot be read (Not a directory)" in device.refusal()


def test_control_characters_in_a_name_do_not_reach_the_terminal(device: Device) -> None:
    device.site('[poll]\n"\\u001b[2J\\n" = 1\n')
    assert "is no key" in device.refusal()


def test_explain_shows_every_key_with_value_source_scope_and_text(device: Device) -> None:
    file = device.site('network.proxy_route = ["PROXY proxy.example.com:3128", "DIRECT"]\n')
    rows = {row.key: row for row in config.explain(device.image_file, device.conf_dir)}
    declared = [
        f"{s}.{f.name}" for s, cls in get_type_hints(Settings).items() for f in dataclasses.fields(cls)
    ]
    assert list(rows) == declared
    assert rows["network.proxy_route"].value == '["PROXY proxy.example.com:3128", "DIRECT"]'
    assert rows["network.proxy_route"].source == str(file)
    assert rows["network.proxy_route"].scope is Scope.SITE
    assert rows["poll.interval_min_s"].source == "default"
    assert rows["device.hw"].source == str(device.image_file)
    assert rows["hal.driver_allow"].value == '[{name = "smp-reference", distribution = "tidewaiter"}]'
    assert all(row.doc.endswith(".") for row in rows.values())


def test_what_explain_prints_is_a_configuration_again(device: Device) -> None:
    before = device.load()
    text = "".join(f"{row.key} = {row.value}\n" for row in config.explain(device.image_file, device.conf_dir))
    device.image_file.write_text(text)
    assert device.load() == before


def test_a_configuration_that_does_not_load_is_not_explained(device: Device) -> None:
    device.site("poll.interval_min_s = 2\n")
    with pytest.raises(ConfigError):
        config.explain(device.image_file, device.conf_dir)


def test_every_default_obeys_its_own_bounds(device: Device) -> None:
    for section, cls in get_type_hints(Settings).items():
        for field in dataclasses.fields(cls):
            key = describe(field)
            if key.default is MISSING or isinstance(key.default, bool) or not isinstance(key.default, int):
                continue
            assert key.low is not None and key.high is not None, f"{section}.{field.name} has no bounds"
            assert key.low <= key.default <= key.high


def test_paths_of_sockets_follow_the_run_folder(device: Device) -> None:
    device.image('paths.run_dir = "/tmp/r"', 'paths.state_dir = "/tmp/s"')
    paths = device.load().paths
    assert str(paths.relay_socket) == "/tmp/r/agent/relay.sock"
    assert str(paths.reboot_flag) == "/tmp/r/reboot/now"
    assert [p.name for p in (paths.hal_state_dir, paths.updater_state_dir, paths.agent_state_dir)] == [
        "hal",
        "updater",
        "agent",
    ]


def test_settings_cannot_be_changed(device: Device) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.load().poll.interval_min_s = 1  # type: ignore[misc]
