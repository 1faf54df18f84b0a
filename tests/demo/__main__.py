"""`python -m tests.demo`: run the story, write out/demo/report.json and report.html, exit 0 only if every step is ok."""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.demo import report
from tests.demo.room import Room
from tests.demo.story import MAIN, Story
from tests.demo.timeline import Step, StepFailedError, Timeline
from tests.demo.watch import ListenWatch
from tests.sim.image import ImageToolMissingError, tool
from tests.sim.plant import Plant


def main(argv: list[str] | None = None, *, room_at: Callable[[Path], Room] = Room.of) -> int:
    """Entry point; exit 0 all steps ok, 1 a step failed, 3 this machine lacks a tool or room on its disk."""
    parser = argparse.ArgumentParser(
        prog="make demo", description="The main job of tidewaiter on this machine, without root."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="where reports and logs go (default: %(default)s)"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the whole world (images, repository, device disks) in OUT/world",
    )
    options = parser.parse_args(argv)
    try:
        tool("mke2fs")
        tool("debugfs")
    except ImageToolMissingError as err:
        print(f"make demo: {err}", file=sys.stderr)
        return 3
    if shortage := room_at(Path(tempfile.gettempdir())).shortage():
        print(f"make demo: {shortage}", file=sys.stderr)
        return 3
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    # Socket paths are limited to 107 bytes, so the world lives in a short temporary directory.
    world = Path(tempfile.mkdtemp(prefix="tw-"))
    # Ended from outside, the story still ends its processes: SystemExit runs the `finally` below.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    timeline = Timeline()
    plant = Plant(world)
    story = Story(plant, timeline)
    listening = ListenWatch(story.pids)
    try:
        run(story, timeline)
    finally:
        listening.stop()
        for watch in story.watches.values():
            watch.stop()
        _close(plant, world, options.out, keep=options.keep)
    _no_listener(timeline, listening)
    facts = {
        "release images": f"{plant.image_bytes >> 20} MiB each",
        "device processes watched for listening sockets": f"{len(listening.processes)} over {listening.samples} samples",
        "boots of the main device": plant.machines[MAIN].boots if MAIN in plant.machines else 0,
    }
    ok = report.write(timeline, options.out, facts=facts)
    print(f"\n{'ok' if ok else 'FAILED'} after {timeline.now_s():.0f} s; look at {options.out}/report.html")
    return 0 if ok else 1


def run(story: Story, timeline: Timeline) -> None:
    """All steps in order; a failed one is recorded and the next is still tried."""
    timeline.say("no root, no network but loopback: manufacturer, two hospital devices, two injectors")
    story.prepare()
    with timeline.step("update-commits", "a release is installed, booted, checked and committed") as step:
        broken = story.start_broken_release()
        story.update_commits(step)
    _step(
        timeline,
        "tampered-release-refused",
        "a flipped byte and a forged file are refused",
        story.tampered_release_refused,
    )
    _step(
        timeline,
        "injection-defers-update",
        "armed or injecting: nothing reboots",
        story.injection_defers_update,
    )
    _step(
        timeline, "power-cut-resumes", "killed in the middle of the write, resumed", story.power_cut_resumes
    )
    with timeline.step(
        "broken-release-rolls-back", "health fails in the new slot: the old one returns"
    ) as step:
        story.broken_release_rolls_back(step, broken)


def _step(timeline: Timeline, name: str, title: str, action: Callable[[Step], None]) -> None:
    with timeline.step(name, title) as step:
        action(step)


def _no_listener(timeline: Timeline, listening: ListenWatch) -> None:
    with timeline.step(
        "no-device-process-listens", "no listening INET socket during the whole story"
    ) as step:
        if listening.found:
            raise StepFailedError("; ".join(sorted(listening.found)))
        if listening.samples < 10 or not listening.processes:
            raise StepFailedError(
                f"only {listening.samples} samples of {len(listening.processes)} processes were taken"
            )
        seen = f"{listening.samples} samples, {listening.ss_samples} of them by ss"
        step.detail = f"{seen}, of {', '.join(sorted(listening.processes))}: none"


def _close(plant: Plant, world: Path, out: Path, *, keep: bool) -> None:
    plant.close()
    for serial, machine in plant.machines.items():
        shutil.copytree(machine.home / "log", out / "logs" / serial, dirs_exist_ok=True)
    server_log = plant.enterprise.home / "server.log"
    if server_log.exists():
        shutil.copyfile(server_log, out / "logs/server.log") if (out / "logs").is_dir() else None
    if keep:
        shutil.move(world, out / "world")
    else:
        shutil.rmtree(world, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
