"""Fuzzing of every parser that meets outside bytes: `make fuzz` (atheris), corpora that `make test` replays without it."""
