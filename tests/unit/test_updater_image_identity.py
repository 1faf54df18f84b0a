"""Who runs here, and the flag that restarts it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.errors import ConfigError, StateWriteError
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.image_identity import read_identity, read_serial
from tidewaiter_updater.reboot import RebootFlag

IMAGE: dict[str, Any] = {
    "schema": 1,
    "product": "injector",
    "version": "2.0",
    "sequence": 2,
    "security_epoch": 1,
    "built_utc": "2026-11-01T00:00:00Z",
    "hw": ["rev-c"],
}


def image(folder: Path, **changes: Any) -> Path:
    path = folder / "image.json"
    path.write_text(
        json.dumps({name: value for name, value in (IMAGE | changes).items() if value is not ...})
    )
    return path


def test_the_identity_of_the_root_is_read(tmp_path: Path) -> None:
    identity = read_identity(image(tmp_path))
    assert (identity.version, identity.sequence, identity.hw) == ("2.0", 2, ("rev-c",))
    assert identity.built_utc == "2026-11-01T00:00:00.000Z"


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": "2"},
        {"sequence": -1},
        {"sequence": True},
        {"version": ""},
        {"hw": ...},
        {"built_utc": "yesterday"},
        {"schema": 2},
    ],
)
def test_an_identity_that_says_nothing_certain_stops_the_start(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"image\.json"):
        read_identity(image(tmp_path, **changes))


DATA = {"writes": 2, "reads_min": 1, "reads_max": 2, "reversible": False}


def test_an_image_may_say_what_its_data_are(tmp_path: Path) -> None:
    assert read_identity(image(tmp_path)).data is None
    assert read_identity(image(tmp_path, data=DATA)).data == Data(
        writes=2, reads_min=1, reads_max=2, reversible=False
    )


@pytest.mark.parametrize(
    "wrong",
    [None, [], {}, {"writes": 3}, {"writes": 0}, {"reads_max": 65536}, {"reversible": 0}, {"writes": "2"}],
    ids=str,
)
def test_data_that_cannot_be_understood_stop_the_start(tmp_path: Path, wrong: Any) -> None:
    data = DATA | wrong if wrong else wrong
    with pytest.raises(ConfigError, match=r"image\.json"):
        read_identity(image(tmp_path, data=data))


def test_a_missing_identity_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identity of the running image, found no file"):
        read_identity(tmp_path / "none.json")


@pytest.mark.parametrize("serial", ["", None, 7, "x" * 65])
def test_a_serial_that_is_none_stops_the_start(tmp_path: Path, serial: Any) -> None:
    (tmp_path / "provisioned.json").write_text(json.dumps({"schema": 1, "serial": serial}))
    with pytest.raises(ConfigError, match="serial"):
        read_serial(tmp_path / "provisioned.json")


def test_the_reboot_flag_is_a_file_that_can_be_withdrawn(tmp_path: Path) -> None:
    flag = RebootFlag(tmp_path / "now")
    flag.withdraw()
    flag.request()
    assert flag.is_requested()
    assert (tmp_path / "now").exists()
    flag.withdraw()
    assert not flag.is_requested()


def test_a_flag_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateWriteError, match="nothing restarts"):
        RebootFlag(tmp_path / "missing" / "now").request()
