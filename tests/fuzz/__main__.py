"""`make fuzz`: attack every parser that meets outside bytes for some seconds each; out/fuzz/report.json.

    python -m tests.fuzz [--target NAME ...] [--seconds N] [--seed N] [--keep]

Each target runs in a process of its own, two at a time. A finding ends its target; the input is in out/fuzz/findings, with the
traceback in the log beside it. `--keep` adds inputs that reached new code to the kept corpora (tests/fuzz/corpus).
Exit codes: 0 nothing found, 1 something found, 2 usage, 3 the fuzzer is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.corpus import FOLDER, KEPT_BYTES, keep, kept, write_seeds
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

AT_A_TIME = 2
_GRACE_S = 300
_DONE = re.compile(rb"Done (\d+) runs in (\d+) second")
_PROGRESS = re.compile(rb"^#(\d+)\t.*cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Attack:
    """What came of one target."""

    target: str
    runs: int
    covered: int
    """Edges of the instrumented modules that were reached."""
    corpus: int
    finding: str
    """The last line of the traceback; empty when nothing was found."""
    input: str
    """Where the input is that shows it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated"
    )
    parser.add_argument("--seconds", type=int, default=60, help="per target (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the mutations; 0 is another one each time (default: 0)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument(
        "--keep", action="store_true", help="add inputs that reached new code to tests/fuzz/corpus"
    )
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print(
            "make fuzz: atheris is not installed (it has no build for this Python or processor); nothing was run"
        )
        return 3
    shutil.rmtree(options.out, ignore_errors=True)
    chosen = [TARGETS[name] for name in options.target or TARGETS]
    print(f"{len(chosen)} targets, {options.seconds} s each, {AT_A_TIME} at a time", flush=True)

    def attacked(target: Target) -> Attack:
        result = attack(target, seconds=options.seconds, seed=options.seed, out=options.out)
        state = result.finding or "nothing found"
        print(f"{target.name:14} {result.runs:>9} runs  {result.covered:>5} edges  {state}", flush=True)
        return result

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(attacked, chosen))
    if options.keep:
        for target in chosen:
            print(f"{target.name}: {keep_new(target, options.out)} inputs kept")
    report = {"seconds": options.seconds, "targets": [asdict(result) for result in results]}
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return int(any(result.finding for result in results))


def attack(target: Target, *, seconds: int, seed: int, out: Path) -> Attack:
    """Run libFuzzer over one target."""
    corpus, findings, log = (
        out / "corpus" / target.name,
        out / "findings" / target.name,
        out / f"{target.name}.log",
    )
    write_seeds(target, corpus)
    findings.mkdir(parents=True)
    known = FOLDER / target.name
    command = [sys.executable, "-m", "tests.fuzz.worker", target.name, str(corpus)]
    command += [str(known)] if known.is_dir() else []
    command += [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-artifact_prefix={findings}/",
        "-rss_limit_mb=1024",
        "-timeout=20",
    ]
    with log.open("wb") as stream:
        ended = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=seconds + _GRACE_S)
    said = log.read_bytes()
    progress = _PROGRESS.findall(said)
    done = _DONE.search(said)
    shown = next(iter(sorted(findings.iterdir())), None)
    return Attack(
        target=target.name,
        runs=int(done[1]) if done else int(progress[-1][0]) if progress else 0,
        covered=int(progress[-1][1]) if progress else 0,
        corpus=int(progress[-1][3]) if progress else 0,
        finding="" if ended.returncode == 0 and done else _reason(said, ended.returncode),
        input=str(shown) if shown is not None else "",
    )


def keep_new(target: Target, out: Path) -> int:
    """Keep the inputs that add code to what the kept corpus reaches; how many there were."""
    known = FOLDER / target.name
    known.mkdir(parents=True, exist_ok=True)
    merged = out / "merged" / target.name
    merged.mkdir(parents=True)
    for path in kept(target):
        shutil.copy(path, merged / path.name)
    before = {path.name for path in merged.iterdir()}
    command = [sys.executable, "-m", "tests.fuzz.worker", target.name, "-merge=1", str(merged)]
    subprocess.run(
        [*command, str(out / "corpus" / target.name)], capture_output=True, timeout=_GRACE_S, check=True
    )
    fresh = [path for path in merged.iterdir() if path.name not in before]
    small = [path.read_bytes() for path in fresh if path.stat().st_size <= KEPT_BYTES]
    for data in small:
        keep(target, data)
    return len(small)


def _reason(said: bytes, code: int) -> str:
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line) or line.startswith("SUMMARY")
    ]
    return (errors or lines or [f"ended with {code}"])[0][:300]


if __name__ == "__main__":
    sys.exit(main())
