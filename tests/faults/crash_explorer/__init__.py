"""Crash explorer: the power is cut at every storage operation of an update, and again during each recovery.

The product's engine, parsers, floors, journal and boot adapters run on `tests/sim/storage`. `releases` makes what is installed,
`backends` are the boot loaders, `world` is one device, `watch` notes what it promises, `cuts` enumerates what a cut may leave,
`invariants` judges it, `scenarios` are the stories, `mutations` the mistakes that must be found, `explorer` does the walking.

Source: update-engine.md section 17.1. Run: `make faults`, or `python -m tests.faults.crash_explorer --help`.
"""
