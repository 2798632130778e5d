# Two commands: `make train` runs the main job, `make test` checks everything.
# Options of the job go through ARGS: make train ARGS="cifar10-small --data.download"

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
MLFLOW_PORT ?= 5000

.PHONY: train attack detect defend study reproduce test cluster faults browser infra ui bench lint types contracts pytest check audit clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# pip's own version check and its progress bars say nothing that matters here.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version), expected Python 3.11 or 3.12; set PYTHON, as in: make train PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/python pyproject.toml constraints.txt
	@echo "installing pinned packages into .venv (several GB the first time)"
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev,bench]'
	$(PIP) --no-deps torchattacks==3.5.1  # it pins a version of requests that nothing else accepts
	@touch $@

train: .venv/installed  ## set up if needed, then train: ARGS="[preset] [--flag value ...]"
	@$(BIN)/python jobs/train.py $(ARGS)

attack: .venv/installed  ## attack a checkpoint: ARGS="[preset] --checkpoint runs/train/cdvae-..."
	@$(BIN)/python jobs/attack.py $(ARGS)

detect: .venv/installed  ## detect attacks: ARGS="[preset] --checkpoint ... --classifier ..."
	@$(BIN)/python jobs/detect.py $(ARGS)

defend: .venv/installed  ## attack defences: ARGS="[preset] --defenses NAME=runs/train/... ..."
	@$(BIN)/python jobs/evaluate_defense.py $(ARGS)

study: .venv/installed  ## compare parts of x and x': ARGS="[preset] --checkpoint ... --classifier ..."
	@$(BIN)/python jobs/analyze.py $(ARGS)

reproduce: .venv/installed  ## tables and figures of the paper: ARGS="[preset] --table 4 --figure 2 3"
	@$(BIN)/python jobs/reproduce.py $(ARGS)

ui: .venv/installed  ## the MLflow UI of this folder's runs, on loopback
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --port $(MLFLOW_PORT) \
	  --workers 1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

infra: .venv/installed-dev  ## check the cluster files in infra/, offline
	$(BIN)/python infra/check.py

test: lint types contracts pytest  ## set up if needed, then lint, types, import contracts, tests

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

contracts: .venv/installed-dev
	$(BIN)/lint-imports --no-cache

check: lint types contracts audit  ## all that looks at code and pins without running them

audit: .venv/installed-dev  ## ask for known vulnerabilities of the pinned packages (online)
	@$(BIN)/python infra/audit.py

# Two at a time with a thread each, then the main job on a Ray cluster. With PYTEST_ARGS one of
# the two may have nothing to run (code 5).
NONE_IS_FINE = || { [ $$? -eq 5 ] && [ -n '$(PYTEST_ARGS)' ]; }

pytest: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 \
	  -m "not faults and not browser and not cluster" $(PYTEST_ARGS) $(NONE_IS_FINE)
	$(BIN)/pytest -m "cluster and not jobs and not faults and not browser" $(PYTEST_ARGS) $(NONE_IS_FINE)

cluster: .venv/installed-dev  ## run every job on a real Ray cluster (half an hour)
	$(BIN)/pytest -m "cluster and not faults" $(PYTEST_ARGS)

faults: .venv/installed-dev  ## kill workers, actors and drivers of running jobs (minutes)
	$(BIN)/pytest -m faults $(PYTEST_ARGS)

browser: .venv/installed-dev  ## open the report in headless Chromium, which must be there: REPORT=<file>
	$(PIP) --editable '.[browser]'
	REPORT='$(REPORT)' $(BIN)/pytest -m browser tests/browser $(PYTEST_ARGS)

bench: .venv/installed-dev  ## run all benchmarks, compare with the committed record (over two hours)
	@$(BIN)/python benchmarks/run.py $(ARGS)

clean:  ## remove the environment and caches, but no runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
