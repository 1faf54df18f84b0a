"""The lock that `fw_setenv` takes too: waited for, but never so long that a verdict is not written."""

import fcntl
from pathlib import Path

import pytest
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.uboot import EnvPartition


def test_a_lock_that_nobody_gives_back_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    lock_file = tmp_path / "fw_printenv.lock"
    partition = EnvPartition(tmp_path / "env", lock_file=lock_file, lock_wait_s=0)
    with (
        lock_file.open("w") as held,
        pytest.raises(BootEnvError, match="held by another process"),
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        with partition.locked():
            pytest.fail("the lock was taken twice")
    with partition.locked():
        pass
