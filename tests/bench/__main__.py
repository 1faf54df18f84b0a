"""`make bench`: speed, memory and bytes beside other programs, in one run; out/bench/*.json and out/bench/report.html.

Exit 0 when every bound of update-engine.md 17.3 that binds here holds, 1 when one does not, 2 when nothing could be measured.
Root measures on loop devices; without root the slots are files, and what that leaves out is said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench import memory, patches, resume, speed
from tests.bench.image import full_image
from tests.bench.machine import facts
from tests.bench.page import page
from tests.bench.result import Result
from tests.bench.speed import Setting
from tests.bench.storage import is_root
from tests.bench.table import summary, write_docs

RUNS: Final = 5
QUICK_RUNS: Final = 2
QUICK_MIB: Final = 256
DOCS: Final = Path("docs/benchmarks.md")

_EXPECTED_S: Final = {
    "install-disk": 110,
    "install-slow-disk": 140,
    "install-memory": 180,
    "read-back": 40,
    "read-back-slow-disk": 60,
    "resume": 60,
    "memory": 270,
    "patch-speed": 260,
    "patch-bytes": 90,
}
"""What each takes on two quiet cores: only for the remaining time that is shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, say how far it is, write everything."""
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    machine = facts()
    _say(_of_machine(machine))
    names = options.only or list(_EXPECTED_S)
    work = Path(tempfile.mkdtemp(prefix="tw-bench-", dir=options.work))
    results: list[Result] = []
    try:
        runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
        mib = options.mib or (QUICK_MIB if options.quick else None)
        _say(f"image: {'a real Debian root image, if there is one' if mib is None else f'{mib} MiB'}")
        image = full_image(work, mib=mib)
        setting = Setting(image=image, work=work, runs=runs, say=_say)
        results = _run(
            names,
            _benchmarks(setting, is_quick=options.quick),
            scale=0.3 if options.quick else 1.0,
            out=options.out,
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    (options.out / "machine.json").write_text(json.dumps(machine, indent=2) + "\n")
    (options.out / "report.html").write_text(page(results, machine))
    if options.docs:
        write_docs(DOCS, options.out)
        _say(f"{DOCS} is made anew from {options.out}")
    _say(summary(results))
    _say(f"report: {options.out / 'report.html'}")
    if not any(result.budgets for result in results):
        return 2
    return 0 if all(result.is_held for result in results) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a small image, two rounds, no patches: some minutes"
    )
    parser.add_argument(
        "--only", action="append", choices=list(_EXPECTED_S), help="just this one; repeatable"
    )
    parser.add_argument("--runs", type=int, help=f"rounds of each comparison (default: {RUNS})")
    parser.add_argument(
        "--mib", type=int, help="size of an image of this machine's files, instead of a real one"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("/var/tmp"),
        help="scratch on the disk to measure (default: %(default)s)",
    )
    parser.add_argument("--docs", action="store_true", help=f"also write {DOCS} from the results in --out")
    return parser.parse_args(argv)


def _benchmarks(setting: Setting, *, is_quick: bool) -> dict[str, Callable[[], Result]]:
    return {
        "install-disk": lambda: speed.install_on_disk(setting),
        "install-slow-disk": lambda: speed.install_on_slow_disk(setting),
        "install-memory": lambda: speed.install_in_memory(setting),
        "read-back": lambda: speed.read_back(setting),
        "read-back-slow-disk": lambda: speed.read_back_slowly(setting),
        "resume": lambda: resume.resume(setting),
        "memory": lambda: memory.memory(setting, is_quick=is_quick),
        "patch-speed": lambda: patches.applied(runs=setting.runs, is_quick=is_quick),
        "patch-bytes": lambda: patches.fetched(is_quick=is_quick),
    }


def _run(
    names: Sequence[str], benchmarks: dict[str, Callable[[], Result]], *, scale: float, out: Path
) -> list[Result]:
    """Each result is written as soon as it is there: who breaks off keeps what was measured."""
    results = []
    pace, all_began_s = 1.0, time.monotonic()
    for number, name in enumerate(names):
        left_s = sum(_EXPECTED_S[later] for later in names[number:]) * scale * pace
        _say(f"[{number + 1}/{len(names)}] {name}; about {max(1, round(left_s / 60))} min left for all")
        began_s = time.monotonic()
        results.append(benchmarks[name]())
        results[-1].write(out)
        took_s = time.monotonic() - began_s
        pace = max(0.5, took_s / (_EXPECTED_S[name] * scale))
        verdict = "bounds hold" if results[-1].is_held else "A BOUND IS MISSED"
        _say(
            f"  {name}: {took_s:.0f} s, {verdict}; {(time.monotonic() - all_began_s) / 60:.1f} min since the start"
        )
    return results


def _of_machine(machine: dict[str, Any]) -> str:
    root = (
        "root: loop devices"
        if is_root()
        else "not root: files instead of loop devices, neither rauc nor swupdate"
    )
    return (
        f"{machine['processor']}, {machine['cpus']} cores, load {machine['load'][0]}, SHA-256 of one core "
        f"{machine['sha256_of_one_core_mb_per_s']} MB/s; {root}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
