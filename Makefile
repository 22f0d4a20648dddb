PYTHON ?= python3
BIN := .venv/bin

# uv ignores pip's settings, so a folder of wheels that pip is told of is passed on.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help install quickstart test test-cluster test-faults lint audit

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: .venv/.installed ## create .venv and install vtbench with everything it needs

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable . --group dev
	touch $@

quickstart: install ## a first sweep on the embedded model, on CPU, with its report
	$(BIN)/vtbench run sweeps/quickstart.yaml

test: install ## the test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-cluster: install ## a sweep as a job on a Ray cluster of three nodes here, minutes
	$(BIN)/python -m pytest -m cluster tests/cluster

test-faults: install ## kills at random points of sweeps, FAULTS_SEED=… for the same ones again (long)
	$(BIN)/python -m pytest tests/faults -m "faults or not faults" -s

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: install ## known vulnerabilities of what constraints.txt pins
	$(BIN)/uvx pip-audit --requirement constraints.txt --no-deps --disable-pip --strict
