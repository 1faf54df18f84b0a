# The commands everyone relies on; each does its own set-up on a fresh machine (README.md, CONTRIBUTING.md).
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test check bench faults fuzz conformance device-test docs lock format privileged-test clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): requirements/dev.txt pyproject.toml tools/venv.sh
	@tools/venv.sh $(VENV)

demo: $(READY) ## the main job on this machine, no root: out/demo/report.html
	@$(BIN)/python -m tests.demo

test: $(READY) ## the whole suite that needs only Python; says what it skipped and why
	@$(PYTEST) -m "not privileged" $(ARGS)

check: $(READY) ## format, lint, types, layers, README against the programs, then the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tools.reference --check
	@$(BIN)/python -m tools.readme_check
	@$(MAKE) --no-print-directory test

bench: $(READY) ## speed, memory and bytes beside dd, rauc, swupdate and others: out/bench/report.html (ARGS=--quick)
	@$(BIN)/python -m tests.bench $(ARGS)

faults: $(READY) ## cut the power at every storage operation of an update: out/faults/crash-explorer.json
	@$(BIN)/python -m tests.faults.crash_explorer $(ARGS)

fuzz: $(READY) ## attack every parser that meets outside bytes: out/fuzz/report.json
	@$(BIN)/python -m tests.fuzz $(ARGS)

conformance: $(READY) ## the public TUF client conformance suite: make conformance SUITE=<its checkout>
	@$(BIN)/python -m tests.conformance.suite $(SUITE) $(ARGS)

privileged-test: $(READY) ## the tests that need root (loop devices, network namespaces)
	@$(PYTEST) -m privileged $(ARGS)

device-test: $(READY) ## privileged tests; installs the Debian packages they need when root
	@tools/debian_packages.sh
	@$(MAKE) --no-print-directory privileged-test

docs: $(READY) ## generated reference pages in docs/reference, and everything as HTML in out/docs
	@$(BIN)/python -m tools.reference
	@$(BIN)/python -m tools.site

format: $(READY) ## let ruff format and fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(READY) ## pin requirements/*.txt again (hashes, no addresses)
	@tools/lock.sh $(BIN)

clean: ## remove everything that was generated
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
