# Two targets take a fresh machine all the way: `make demo` and `make test`. Each makes .venv first if there is none.

PYTHON ?= python3
# Idle threads sleep: spinning ones slow a shared machine many times over.
export OMP_WAIT_POLICY := PASSIVE
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STUDIES := encoding.py scale.py records.py resume.py sweeps.py training.py audit.py transfer.py runs.py applicability.py service.py fuzz.py targets.py targets_speed.py $(if $(wildcard /usr/sbin/slurmctld),slurm.py) $(if $(ICAN_COHORTS),science.py parity.py few_shot.py)
PYTEST ?= --numprocesses 2 --dist loadfile --durations 10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test studies gpu lint format types clean

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.train  ## Train, evaluate, export and predict on the simulated cohort
	$(BIN)/python train.py experiment=demo

test: $(VENV)/.train  ## Run the tests
	$(BIN)/python -m pytest $(PYTEST)

studies: $(VENV)/.bench  ## Measure what is too slow for the tests (hours; goes on where it stopped)
	$(foreach study,$(STUDIES),$(BIN)/python benchmarks/$(study) --check && )true

gpu: $(VENV)/.gpu  ## Test and measure on a GPU (needs one)
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/gpu.py --check

lint: $(VENV)/.dev  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## Bring the code into the format that lint expects
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## Check the types
	$(BIN)/mypy --strict ican_ml train.py

clean:  ## Remove .venv, builds and caches (runs/ stays)
	rm -rf $(VENV) build dist .emulator .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find ican_ml tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.train: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'ican_ml needs Python 3.11 or later; "$(PYTHON)" is' "$$($(PYTHON) --version 2>&1)." \
	       'Name a newer one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),test)' >&2; exit 1; }
	@echo 'Installing into $(VENV) (a few minutes) ...'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[train,test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.train
	@$(PIP) --editable '.[bench,slurm]'
	@touch $@

$(VENV)/.kernels: $(VENV)/.train
	@$(PIP) --editable '.[kernels]'
	@touch $@

$(VENV)/.gpu: $(VENV)/.train
	@$(PIP) --editable '.[gpu]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@$(PIP) --editable '.[dev]'
	@touch $@
