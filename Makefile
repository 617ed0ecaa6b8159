# The commands of README.md. PYTHON names the interpreter that makes .venv (3.11+).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# The locks hold every package; PyTorch differs by platform and index, so only its version
# is pinned (requirements-dev.txt), and the CUDA libraries that some of its wheels ask for
# come with it.
LOCKED := $(PIP) --no-deps --require-hashes
UNLOCKED := ^(torch$$|triton$$|nvidia-|cuda-)
UV := $(VENV)/uv/bin/uv
UV_VERSION := 0.13.9
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 \
  --fork-strategy fewest --generate-hashes --no-header --no-emit-index-url

.PHONY: help setup setup-dev lock locked demo study test test-all coverage check bench format clean

help:
	@echo "make demo       prepare real pictures, train, test, draw (about 10 minutes)"
	@echo "make test       ruff, mypy, import-linter and the tests"
	@echo "make test-all   the same with the slow tests"
	@echo "make coverage   the lines that the tests reach"
	@echo "make study      compare the poolings on the demo's pictures (about two hours)"
	@echo "make bench      time the pieces that docs/results.md lists"
	@echo "make setup      only create .venv for running"
	@echo "make setup-dev  only create .venv for tests and conversion"
	@echo "make lock       write requirements*.lock anew after a change of requirements*.txt"
	@echo "make locked     name each installed package that is not in the locks"
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

# Where a list was changed and its lock was not, nothing is fetched: make stops.
define agree
@$(PIP) --dry-run --no-index $(1) || \
  { echo "error: $(2) does not hold what its list asks for; run make lock" >&2; exit 1; }
endef

$(VENV)/.runtime: $(VENV)/.venv-made requirements.txt requirements-data.txt requirements.lock
	@echo "Installing the packages of requirements.lock"
	$(LOCKED) -r requirements.lock
	$(call agree,-r requirements.txt,requirements.lock)
	$(call agree,--no-deps -r requirements-data.txt,requirements.lock)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt requirements-dev.lock
	@echo "Installing the packages of requirements-dev.lock, and PyTorch"
	$(LOCKED) -r requirements-dev.lock
	$(PIP) "$$(grep '^torch==' requirements-dev.txt)"
	$(call agree,-r requirements-dev.txt,requirements-dev.lock)
	@touch $@

# uv has an environment of its own inside .venv.
$(UV): Makefile
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@touch $@

# What a lock holds stays where the lists allow it; UPGRADE=--upgrade takes the newest.
lock: $(UV)
	$(COMPILE) $(UPGRADE) requirements-dev.txt --output-file requirements-dev.lock
	cp requirements-dev.lock requirements.lock
	$(COMPILE) requirements.txt --output-file requirements.lock
	$(COMPILE) --no-deps requirements-data.txt >> requirements.lock
	@for lock in requirements.lock requirements-dev.lock; do \
	  { echo "# Written by make lock. Every package is here, with the hashes of all its public"; \
	    echo "# files, PyTorch excepted: pip install --no-deps --require-hashes -r $$lock"; \
	    echo "# Resolved for Python 3.11 and later and for all systems; only Python 3.11 on"; \
	    echo "# Linux (x86-64) was run. Windows and macOS on Intel have no array-record."; \
	    awk '/^[^ #]/ { split($$1, part, "="); skip = part[1] ~ /$(UNLOCKED)/ } !skip' $$lock; \
	  } > $$lock.new && mv $$lock.new $$lock || exit 1; \
	done

locked: setup-dev
	@$(BIN)/python -m pip freeze | awk -F '[= ]+' ' \
	  FILENAME != "-" { if (/^[^ #]/) lock[$$1] = $$2; next } \
	  { name = tolower($$1); gsub(/[_.]/, "-", name) } \
	  name !~ /$(UNLOCKED)/ && lock[name] != $$2 { print "not locked: " $$0; bad = 1 } \
	  END { exit bad }' requirements.lock requirements-dev.lock -

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
	$(BIN)/python -m studies.pooling

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# A file's tests share what they have trained, so a file is one worker's; the files that
# start processes of their own come first (tests/conftest.py).
WORKERS := -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: check
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

test-all: check
	$(BIN)/python -m pytest $(WORKERS)

coverage: setup-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "not slow"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --fail-under=95

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
