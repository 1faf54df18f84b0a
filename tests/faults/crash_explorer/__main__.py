"""`python -m tests.faults.crash_explorer`: explore, write the report, exit 1 if anything is wrong.

The time is reported and not judged: it depends on who else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from tests.faults.crash_explorer.campaign import named, run
from tests.faults.crash_explorer.explorer import Effort
from tests.faults.crash_explorer.page import render
from tests.faults.crash_explorer.report import complaints, document, table

REPORT = Path("out/faults/crash-explorer.json")
PAGE = "report.html"
SECOND_IN = 44


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crash_explorer", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help="words in the names of the scenarios; default: all")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--second-in", type=int, default=SECOND_IN, help="cut one of so many steps of each recovery; 0: none"
    )
    parser.add_argument("--no-mutations", action="store_true", help="do not look for seeded mistakes")
    options = parser.parse_args()
    scenarios = named(options.scenarios)
    if not scenarios:
        parser.error(f"no scenario is called {' or '.join(options.scenarios)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers end too
    result = run(
        scenarios,
        effort=Effort(second_in=options.second_in),
        processes=options.processes,
        with_mutations=not options.no_mutations,
        say=lambda text: print(text, flush=True),
    )
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(document(result), indent=1) + "\n", encoding="utf-8")
    page = options.report.with_name(PAGE)
    page.write_text(render(result), encoding="utf-8")
    print(table(result))
    found = complaints(result, is_whole=not options.scenarios and options.second_in > 0)
    for text in found:
        print(f"FAILED: {text}")
    print(
        f"{result.images} distinct images in {result.seconds:.0f} s on {options.processes} processors "
        f"({result.processor_seconds:.0f} s of work), "
        f"{result.violations} violations, "
        f"{sum(how is not None for how in result.mutations.values())} of {len(result.mutations)} seeded mistakes found; "
        f"{options.report}, {page}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
