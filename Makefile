# Every target sets up what it needs first; a second run does nothing it need not.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

PY := .venv/bin/python
PYTEST := .venv/bin/pytest

.PHONY: help setup demo test test-all check format fuzz chaos bench bench-quick lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## everything Cove needs: .venv, hashed dependencies and, as root, system packages
	@bash scripts/setup.sh

demo: setup ## start Cove, deploy a weather server, call it, watch it go back to zero
	@$(PY) examples/demo.py

test: setup ## the suite, against real servers, processes and kernels
	@bash scripts/setup.sh tests
	@$(PYTEST) -m "not slow"

test-all: setup ## the suite with its slow part
	@bash scripts/setup.sh tests
	@$(PYTEST)

check: setup ## formatting, lint, types, the import rule, documentation
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@$(PYTEST) -q tests/test_layers.py tests/test_docs.py tests/test_repository.py

format: setup ## what `make check` would complain about and a program can mend
	@.venv/bin/ruff check -q --fix-only .
	@.venv/bin/ruff format .

fuzz: setup ## a million hostile inputs for the gateway's wires (SEED=, COUNT=, CASE=; 3 minutes)
	@cd tests && ../$(PY) -m fuzz $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT)) \
		$(if $(CASE),--case $(CASE))

chaos: setup ## kill a loaded Cove fifty times, and look what was kept (SEED=, ROUNDS=; 5 minutes)
	@cd tests && ../$(PY) -m chaos $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS))

bench: setup ## measure against nginx and the bare backend; writes docs/benchmarks.md (6 minutes)
	@bash scripts/setup.sh bench
	@$(PY) bench/run.py

bench-quick: setup ## the same with short rounds, to standard output only
	@bash scripts/setup.sh bench
	@$(PY) bench/run.py --rounds 2 --seconds 1 --cold 3 --stdout

lock: setup ## resolve dependencies anew, with hashes: requirements.lock and the tests' own
	@bash scripts/lock.sh

clean: ## remove what the other targets made
	rm -rf .venv .env1x .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/ts/node_modules
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
