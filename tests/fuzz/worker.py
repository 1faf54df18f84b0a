"""One fuzzing process: `python -m tests.fuzz.worker TARGET [arguments of libFuzzer]`. Ends at the first finding.

Apart from the rest because atheris changes the code it imports, and because a finding ends the process.
"""

from __future__ import annotations

import importlib
import logging
import sys

import atheris


def main(arguments: list[str]) -> None:
    """Run libFuzzer over one target; never returns."""
    name = arguments[1]
    with atheris.instrument_imports(
        include=["tidewaiter_core", "tidewaiter_updater"], enable_loader_override=False
    ):
        targets = importlib.import_module("tests.fuzz.targets")
    logging.disable(logging.CRITICAL)
    target = targets.by_name(name)

    def one_input(data: bytes) -> None:
        target.accepts(data)

    atheris.Setup([arguments[0], *arguments[2:], f"-max_len={target.max_bytes}"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
