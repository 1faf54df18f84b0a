"""What ends a process, and with which exit code. Each process here is a real one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tidewaiter_core.workers import Stop

from tests.sim.clock import FakeClock
from tests.sim.service_manager import ServiceManager

PRELUDE = """
import sys, threading
from tidewaiter_core import log, workers
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier
from tidewaiter_core.workers import Stop, Worker

log.configure("test", journal=True)
notifier = Notifier.from_environment()
heartbeat = Heartbeat(SystemClock(), notifier)

def idle(stop):
    stop.event.wait()

def say(text):
    print(text, flush=True)

def run(*items, **more):
    code = workers.run(items, heartbeat=heartbeat, notifier=notifier, on_ready=lambda: say("ready"), **more)
    say(f"code {code}")
    sys.exit(code)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path / "notify") as one:
        yield one


@pytest.fixture
def start(manager: ServiceManager) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def launch(program: str, watchdog_s: float | None = 2) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", PRELUDE + program],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=manager.environment(watchdog_s=watchdog_s),
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield launch


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(
    start: Start, manager: ServiceManager, number: signal.Signals
) -> None:
    process = start("run(Worker('a', idle), Worker('b', lambda stop: stop.wait(3600)))")
    manager.wait_for("READY=1")
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out) == (0, "ready\ncode 0\n")
    assert f"process.signal: {number.name}" in err
    assert manager.received()[-1] == "STOPPING=1"


def test_a_hail_of_signals_does_not_hang_the_process(start: Start, manager: ServiceManager) -> None:
    process = start("run(Worker('a', idle))")
    manager.wait_for("READY=1")
    for _ in range(200):
        process.send_signal(signal.SIGTERM)
    # Handlers are put back at the end, so the last ones may end the interpreter while it finishes.
    assert finish(process)[0] in (0, -signal.SIGTERM)


def test_an_exception_in_a_worker_ends_the_process_with_70(start: Start) -> None:
    code, out, err = finish(start("run(Worker('idle', idle), Worker('link', lambda stop: 1 / 0))"))
    assert code == 70
    assert out.endswith("code 70\n")
    assert "worker.failed: link raised; the process ends" in err
    assert "ZeroDivisionError" in err


def test_sys_exit_in_a_worker_is_a_failure_too(start: Start) -> None:
    assert finish(start("run(Worker('link', lambda stop: sys.exit(0)))"))[0] == 70


def test_a_worker_that_ends_by_itself_ends_the_process_with_70(start: Start) -> None:
    code, _, err = finish(start("run(Worker('link', lambda stop: None), Worker('idle', idle))"))
    assert code == 70
    assert "worker.ended: link returned before it was asked to" in err


def test_a_worker_may_stop_the_process(start: Start) -> None:
    assert finish(start("run(Worker('updater', lambda stop: stop.set()), Worker('idle', idle))"))[0] == 0


def test_a_failure_when_all_workers_run_ends_the_process_with_70(
    start: Start, manager: ServiceManager
) -> None:
    program = "sys.exit(workers.run([Worker('a', idle)], heartbeat=heartbeat, notifier=notifier, on_ready=lambda: 1 / 0))"
    assert finish(start(program))[0] == 70
    assert "READY=1" not in manager.received()


def test_a_worker_that_does_not_end_is_named_and_does_not_hold_the_process(
    start: Start, manager: ServiceManager
) -> None:
    process = start(
        "run(Worker('stubborn', lambda stop: threading.Event().wait()), Worker('a', idle), grace_s=0.1)"
    )
    manager.wait_for("READY=1")
    process.terminate()
    code, _, err = finish(process)
    assert code == 70
    assert "worker.stuck: stubborn did not end within 0.1 s" in err
    assert "most recent call first" in err, "the stacks show where it hangs"


def test_on_stop_ends_a_wait_that_does_not_look_at_the_stop(start: Start, manager: ServiceManager) -> None:
    program = "gate = threading.Event()\nrun(Worker('accept', lambda stop: gate.wait(), on_stop=gate.set))"
    process = start(program)
    manager.wait_for("READY=1")
    process.terminate()
    assert finish(process)[0] == 0


def test_an_exception_in_on_stop_is_a_failure_but_the_others_are_still_asked(
    start: Start, manager: ServiceManager
) -> None:
    process = start(
        "run(Worker('a', idle, on_stop=lambda: 1 / 0), Worker('b', idle, on_stop=lambda: say('b asked')))"
    )
    manager.wait_for("READY=1")
    process.terminate()
    code, out, _ = finish(process)
    assert (code, "b asked" in out) == (70, True)


def test_progress_of_the_workers_becomes_pings(start: Start, manager: ServiceManager) -> None:
    process = start(
        "beat = heartbeat.beat('poller', deadline_s=1)\nrun(Worker('poller', lambda stop: beat.wait(stop.event, 3600)))"
    )
    manager.wait_for("READY=1")
    for _ in range(2):
        assert manager.wait_for("WATCHDOG=1") == []
    process.terminate()
    assert finish(process)[0] == 0


def test_a_stuck_worker_gets_no_ping_but_a_trigger_and_all_stacks(
    start: Start, manager: ServiceManager
) -> None:
    process = start(
        "beat = heartbeat.beat('link', deadline_s=0.6)\n"
        "def stuck_in_the_serial_line(stop):\n    stop.event.wait()\n"
        "run(Worker('link', stuck_in_the_serial_line))"
    )
    manager.wait_for("READY=1")
    assert manager.wait_for("WATCHDOG=trigger") == [], "no WATCHDOG=1: the counter never moved"
    process.terminate()
    _, _, err = finish(process)
    assert "heartbeat.missed: link without progress" in err
    assert "stuck_in_the_serial_line" in err


def test_a_service_manager_that_never_reads_does_not_block_the_process(
    start: Start, manager: ServiceManager
) -> None:
    process = start(
        "beat = heartbeat.beat('a', deadline_s=1)\n"
        "while notifier.status('fill'): pass\n"
        "say('full')\n"
        "run(Worker('a', lambda stop: beat.wait(stop.event, 3600)))"
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["full\n", "ready\n"]
    process.terminate()
    assert finish(process)[0] == 0


def test_ready_is_repeated_until_the_service_manager_takes_it(start: Start, manager: ServiceManager) -> None:
    process = start(
        "beat = heartbeat.beat('a', deadline_s=1)\n"
        "while notifier.status('fill'): pass\n"
        "run(Worker('a', lambda stop: beat.wait(stop.event, 3600)))"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    manager.wait_for("READY=1")
    process.terminate()
    assert finish(process)[0] == 0


def test_the_abort_of_the_watchdog_leaves_the_stacks_of_all_threads(
    start: Start, manager: ServiceManager
) -> None:
    process = start("def hanging(stop):\n    stop.event.wait()\nrun(Worker('link', hanging))")
    manager.wait_for("READY=1")
    process.send_signal(signal.SIGABRT)
    code, _, err = finish(process)
    assert code == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in err
    assert "in hanging" in err


def test_a_process_without_a_service_manager_runs_as_well() -> None:
    program = PRELUDE + "run(Worker('a', lambda stop: stop.set()))"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NOTIFY_", "WATCHDOG_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, env=env
    )
    assert (done.returncode, done.stdout) == (0, "ready\ncode 0\n")


def test_a_stop_stays_set_and_wakes_who_asked_for_it() -> None:
    stop = Stop(FakeClock())
    woken: list[int] = []
    with stop.waking(lambda: woken.append(1)):
        assert not stop.wait(100)
        stop.set()
    stop.set()
    assert stop.is_set
    assert stop.wait(100)
    assert woken == [1]
