"""tidewaiter-migrate as a process: killed at any moment, with programs that hang, fork, fill the disk or stray."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnv, DataState
from tidewaiter_updater.trees import SystemTrees

from tests.sim.data_sets import snapshot
from tests.sim.migrate_process import FIRST, SECOND, MigrateDevice

pytestmark = pytest.mark.integration

FILES = 10_000
KILLS = 8
REWRITE = "sed -i 's/volume=1/volume=one/' settings"


@pytest.fixture
def device(tmp_path: Path) -> MigrateDevice:
    made = MigrateDevice(tmp_path / "d", tmp_path / "data/sets").manufacture()
    (made.data(1) / "settings").write_text("volume=1\n")
    (made.data(1) / "protocols").mkdir()
    for number in range(20):
        (made.data(1) / f"protocols/{number}").write_bytes(os.urandom(2000))
    return made


def mark(device: MigrateDevice) -> str:
    """Changes with every change in set 1."""
    return SystemTrees().mark(device.data(1), beat=lambda files, size: None)


def processes_of(marker: str) -> list[str]:
    """Command lines of the processes that still have `marker` in theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


def test_a_trial_gets_its_data_and_a_clean_environment(device: MigrateDevice) -> None:
    device.program("1-2-10-rewrite", REWRITE)
    device.program("1-2-20-look", 'env | sort > seen; pwd >> seen; echo "token: abcdef0123456789"; ls -l')
    before = snapshot(device.data(1), with_numbers=True)
    device.try_second()
    done = device.run()
    assert done.returncode == 0, done.stderr
    assert (device.data(2) / "settings").read_text() == "volume=one\n"
    seen = (device.data(2) / "seen").read_text()
    assert "hunter2" not in seen
    assert {line.partition("=")[0] for line in seen.splitlines() if "=" in line} <= {
        "PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_", "TIDEWAITER_SET", "TIDEWAITER_FROM", "TIDEWAITER_TO",
    }  # fmt: skip
    assert f"TIDEWAITER_SET={device.sets}/2.tmp/data" in seen
    assert "1-2-20-look: total" in done.stderr
    assert "abcdef0123456789" not in done.stderr
    assert snapshot(device.data(1), with_numbers=True) == before
    assert device.progress().state is DataState.READY
    assert (device.sets / "2/COMPLETE").stat().st_mode & 0o777 == 0o644


def test_a_boot_environment_that_is_not_there_is_named(device: MigrateDevice) -> None:
    device.try_second()
    (device.home / "env").unlink()
    assert device.run().returncode == 78
    assert (device.progress().state, device.progress().code) == (DataState.FAILED, "boot.env-layout")
    assert device.names() == {"1"}


def test_a_boot_environment_without_a_valid_copy_makes_no_set(device: MigrateDevice) -> None:
    device.program("1-2-x", "true")
    device.try_second()
    (device.home / "env").write_bytes(bytes((device.home / "env").stat().st_size))
    assert device.run().returncode == 1
    assert device.progress().code == "data.missing"
    assert device.names() == {"1"}


def test_an_image_without_data_has_nothing_to_do(device: MigrateDevice) -> None:
    text = (device.home / "image.json").read_text()
    (device.home / "image.json").write_text(text.replace('"data"', '"other"'))
    assert device.run().returncode == 0
    assert device.run("settle").returncode == 0
    assert device.names() == {"1"}


def test_a_failing_program_leaves_the_old_set_bit_equal_and_says_so(device: MigrateDevice) -> None:
    device.program("1-2-a", "rm -r protocols; echo cannot read old.db >&2; exit 3")
    device.program("1-2-b", "touch never")
    before = snapshot(device.data(1), with_numbers=True)
    device.try_second()
    done = device.run()
    assert done.returncode == 1
    assert "1-2-a: cannot read old.db" in done.stderr
    progress = device.progress()
    assert (progress.state, progress.code) == (DataState.FAILED, "data.program")
    assert "1-2-a: failed with exit code 3" in progress.detail
    assert snapshot(device.data(1), with_numbers=True) == before
    assert device.names() == {"1"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda program: program.unlink(),
        lambda program: program.chmod(0o644),
        lambda program: program.chmod(0o775),
        lambda program: program.write_text("#!/no/such/interpreter\n"),
    ],
    ids=["missing", "not executable", "writable by others", "no interpreter"],
)
def test_a_program_that_cannot_be_trusted_or_started_fails_the_step(
    device: MigrateDevice, spoil: Callable[[Path], object]
) -> None:
    device.program("1-2-x", "true")
    spoil(device.programs / "1-2-x")
    device.try_second()
    assert device.run().returncode == 1
    assert device.progress().code == "data.program"
    assert device.names() == {"1"}


def test_a_hanging_program_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    device = MigrateDevice(tmp_path / "d", tmp_path / "data/sets").manufacture(deadline_s=2)
    marker = f"987{os.getpid()}"
    device.program("1-2-hang", f"trap '' TERM; sleep {marker} & setsid sleep {marker} & sleep {marker}")
    device.try_second()
    began = time.monotonic()
    assert device.run().returncode == 1
    assert time.monotonic() - began < 30
    assert device.progress().code == "data.deadline"
    assert processes_of(f"sleep {marker}") == []
    assert device.names() == {"1"}


@pytest.mark.parametrize("how", ["&", "in a session of its own"])
def test_a_program_that_leaves_a_process_behind_has_failed(device: MigrateDevice, how: str) -> None:
    marker = f"986{os.getpid()}"
    start = (
        f"sleep {marker} &" if how == "&" else f"(setsid sh -c 'setsid sleep {marker} & sleep {marker}' &)"
    )
    device.program("1-2-fork", f"{start}\nsleep 0.2\nexit 0")
    device.try_second()
    assert device.run().returncode == 1
    assert "processes running" in device.progress().detail
    assert processes_of(f"sleep {marker}") == []
    assert device.names() == {"1"}


def test_endless_output_is_limited_and_the_program_is_not_stopped_by_it(device: MigrateDevice) -> None:
    device.program(
        "1-2-talks", "yes 'a line that nobody needs' | head -n 200000; printf '\\033[2Jx%05000d' 7"
    )
    device.try_second()
    done = device.run()
    assert done.returncode == 0, done.stderr[-500:]
    assert len(done.stderr) < 400_000
    assert "more lines of output" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_program_that_writes_into_the_present_data_is_found_out(device: MigrateDevice) -> None:
    """Nothing but the unit's sandbox keeps a program from the rest of the system; the set it came from is watched."""
    device.program("1-2-strays", f"echo oops >> {device.data(1)}/settings")
    device.try_second()
    assert device.run().returncode == 1
    assert device.progress().code == "data.old-set-changed"
    assert device.names() == {"1"}


def test_a_program_that_replaces_its_directory_has_failed(device: MigrateDevice) -> None:
    device.program(
        "1-2-moves",
        f"cd / && rm -r {device.sets}/2.tmp/data && ln -s {device.data(1)} {device.sets}/2.tmp/data",
    )
    before = snapshot(device.data(1), with_numbers=True)
    device.try_second()
    assert device.run().returncode == 1
    assert device.progress().code == "data.program"
    assert device.names() == {"1"}
    assert snapshot(device.data(1), with_numbers=True) == before


def test_hostile_names_in_the_data_harm_nobody(device: MigrateDevice) -> None:
    outside = device.home / "outside"
    outside.write_text("mine")
    folder = device.data(1)
    for name in ("-rf", "$(touch x)", "two\nlines", "COMPLETE", "LIVE", "2.tmp", "\x1b[2J", "n" * 255):
        (folder / name).write_text(name)
    (folder / "up").symlink_to("../../../outside")
    (folder / "root").symlink_to("/")
    device.program("1-2-nothing", "true")
    device.try_second()
    done = device.run()
    assert done.returncode == 0, done.stderr
    assert snapshot(device.data(2)) == snapshot(folder)
    assert outside.read_text() == "mine"


def test_killed_at_random_points_it_begins_again_and_never_touches_the_old_set(device: MigrateDevice) -> None:
    """SIGKILL of the program and all it started, as a cut would: whatever it left, the next start makes the set."""
    for number in range(FILES):
        folder = device.data(1) / f"{number // 500}"
        folder.mkdir(exist_ok=True)
        (folder / str(number)).write_bytes(b"%d" % number)
    device.program("1-2-slow", f"{REWRITE}; for i in 1 2 3 4 5; do echo $i > step-$i; sleep 0.1; done")
    before = mark(device)
    device.try_second()
    rng, killed = random.Random(4), 0
    for _ in range(KILLS):
        process = device.start()
        try:
            process.wait(rng.uniform(0.2, 4.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        assert mark(device) == before
        if (device.sets / "2").exists():  # only whole sets have a name
            assert (device.data(2) / "step-5").exists()
            break
    assert killed > 0
    done = device.run()
    assert done.returncode == 0, done.stderr
    assert (device.data(2) / "settings").read_text() == "volume=one\n"
    assert sum(1 for path in device.data(2).rglob("*") if path.is_file()) == FILES + 20 + 1 + 5
    assert device.names() == {"1", "2"}


def test_settle_after_the_commit_names_the_set_and_later_removes_the_old_one(device: MigrateDevice) -> None:
    device.program("1-2-x", REWRITE)
    device.try_second()
    assert device.run().returncode == 0
    committed = BootEnv(committed=SlotName.B, ok_a=True, ok_b=True, txn="a" * 16, armboot="0badb007")
    device.env(committed)
    flag = device.home / "run/settle/now"
    flag.touch()
    assert device.run("settle").returncode == 0
    assert not flag.exists()
    assert '"data_schema": 2' in (device.sets / "LIVE").read_text()
    assert (device.sets / "USAGE").exists()
    live = json.loads((device.sets / "LIVE").read_text())
    (device.sets / "LIVE").write_text(json.dumps(live | {"since_utc": "2020-01-01T00:00:00.000Z"}))
    device.boot(SlotName.B, SECOND)
    assert device.run("settle").returncode == 0
    assert device.names() == {"1", "2"}  # slot A may still boot
    device.env(replace(committed, ok_a=False))
    assert device.run("settle").returncode == 0
    assert device.names() == {"2"}


def test_a_second_instance_waits_for_nobody(device: MigrateDevice) -> None:
    device.program("1-2-slow", "sleep 3")
    device.try_second()
    first = device.start()
    time.sleep(1.5)
    assert device.run("settle").returncode == 75
    assert first.wait(60) == 0
    first.communicate()


def test_rolled_back_and_armed_again_the_same_release_gets_the_newest_data(device: MigrateDevice) -> None:
    device.program("1-2-x", "true")
    device.try_second()
    assert device.run().returncode == 0
    device.env(BootEnv(committed=SlotName.A, ok_a=True, ok_b=False, txn="a" * 16, armboot="0badb007"))
    device.boot(SlotName.A, FIRST)
    assert device.run().returncode == 0
    (device.data(1) / "settings").write_text("volume=7\n")
    device.try_second(armboot="0badb008")
    assert device.run().returncode == 0
    assert (device.data(2) / "settings").read_text() == "volume=7\n"
    assert device.names() == {"1", "2", f"2.stale-{'a' * 16}"}


@pytest.mark.privileged
def test_a_program_that_fills_the_disk_gives_the_room_back(tmp_path: Path) -> None:
    point = tmp_path / "data"
    point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(point)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"needs root and tmpfs: {done.stderr.decode().strip()}")
    try:
        device = MigrateDevice(tmp_path / "d", point / "sets").manufacture()
        (device.data(1) / "settings").write_text("volume=1\n")
        before = snapshot(device.data(1), with_numbers=True)
        free = os.statvfs(point).f_bavail
        device.program("1-2-fills", "cat /dev/zero > all || exit 7")
        device.try_second()
        assert device.run().returncode == 1
        assert device.progress().code == "data.program"
        assert snapshot(device.data(1), with_numbers=True) == before
        assert os.statvfs(point).f_bavail >= free - 4
        (device.data(1) / "big").write_bytes(bytes(9 << 20))
        assert device.run().returncode == 1
        assert device.progress().code == "data.no-space"
        assert device.names() == {"1"}
    finally:
        subprocess.run(["umount", str(point)], check=False)


RIGHTS = ("chown", "dac_override", "fowner", "fsetid", "setfcap")


@pytest.mark.privileged
def test_the_rights_of_its_unit_are_enough_and_no_more_are_needed(device: MigrateDevice) -> None:
    """The capabilities in systemd/tidewaiter-migrate@.service, without the rest of root's."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.getuid() != 0:
        pytest.skip("needs root and setpriv (Debian: util-linux)")
    unit = (Path(__file__).parents[2] / "systemd/tidewaiter-migrate@.service").read_text()
    wanted = " ".join(f"CAP_{right.upper()}" for right in RIGHTS)
    assert f"CapabilityBoundingSet={wanted}\n" in unit
    assert f"AmbientCapabilities={wanted}\n" in unit
    folder = device.data(1)
    (folder / "theirs").mkdir(mode=0o700)
    (folder / "theirs/secret").write_text("x")
    (folder / "theirs/secret").chmod(0o400)
    os.chown(folder / "theirs/secret", 4001, 4002)
    os.chown(folder / "theirs", 4001, 4002)
    (folder / "theirs").chmod(0o2700)
    os.setxattr(
        folder / "settings", "security.capability", bytes.fromhex("0000000201000000000000000000000000000000")
    )
    device.program("1-2-x", "touch theirs/new; id -u > who")
    device.try_second()
    rights = ",".join(f"+{right}" for right in RIGHTS)
    done = subprocess.run(
        [
            setpriv,
            f"--inh-caps=-all,{rights}",
            f"--ambient-caps=-all,{rights}",
            f"--bounding-set=-all,{rights}",
            "--securebits=+noroot,+noroot_locked",
            "--no-new-privs",
            *device.command("boot"),
        ],
        env=device.environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    copied, original = snapshot(device.data(2)), snapshot(folder)
    assert copied["theirs/secret"] == original["theirs/secret"]
    assert copied["settings"] == original["settings"]
    assert copied["theirs"][:3] == original["theirs"][:3]
