# The commands of README.md. PYTHON names the interpreter that makes .venv (3.11+).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# The locks hold every package; PyTorch differs by platform and index, so only its version
# is pinned (requirements-dev.txt), and the CUDA libraries that some of its wheels ask for
# come with it. So do a device's packages (requirements-cuda.txt, requirements-tpu.txt),
# and requirements-browser.txt says those of make test-browser.
LOCKED := $(PIP) --no-deps --require-hashes
UNLOCKED := ^(torch$$|triton$$|nvidia-|cuda-|jax-cuda|libtpu$$|playwright$$|greenlet$$|axe-)
UV := $(VENV)/uv/bin/uv
UV_VERSION := 0.13.9
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 \
  --fork-strategy fewest --generate-hashes --no-header --no-emit-index-url

# What JAX is installed for: make setup DEVICE=cuda, make demo DEVICE=tpu. A device that was
# installed once has a stamp file, and follows later changes of the lists without DEVICE.
DEVICE ?= cpu
ifneq ($(words $(DEVICE))$(filter-out cpu cuda tpu,$(DEVICE)),1)
  $(error error: DEVICE=$(DEVICE): none of cpu, cuda, tpu)
endif
STAMPS := $(sort $(filter-out %-cpu,$(VENV)/.device-$(DEVICE)) $(wildcard $(VENV)/.device-*))

# The TPU's compiler, in a folder named after its version.
LIBTPU := $(shell grep '^libtpu==' requirements-tpu.txt)
TPU_COMPILER := $(VENV)/tpu/$(subst ==,-,$(LIBTPU)).dist-info

# Two installations into one .venv at a time would see each other's halves (make -j).
.NOTPARALLEL:
.PHONY: help setup setup-search setup-dev setup-tpu-compiler lock locked demo app study \
  test test-all test-gpu test-browser coverage check bench bench-scaling bench-pieces \
  format clean

help:
	@echo "make demo       prepare real pictures, train, test, draw (3 to 10 minutes)"
	@echo "make app        find the demo's pictures by sentence, in a browser"
	@echo "make test       ruff, mypy, import-linter and the tests"
	@echo "make test-all   the same with the slow tests"
	@echo "make test-gpu   the golden tests, and what only a GPU can show, on an NVIDIA GPU"
	@echo "make test-browser"
	@echo "                the search page in Chromium, which Debian's apt installs for root"
	@echo "make coverage   the lines that the tests reach"
	@echo "make study      compare the poolings on cells of a pretrained CNN (hours; run it"
	@echo "                again to go on)"
	@echo "make bench      our speed and PyTorch's, row by row (docs/performance.md; 40 minutes)"
	@echo "make bench-scaling"
	@echo "                how time grows with batch, set, caption and number of pictures"
	@echo "make bench-pieces"
	@echo "                time the pieces that docs/results.md lists"
	@echo "make setup      only create .venv for running"
	@echo "make setup-search"
	@echo "                the same with what a search in one's own pictures needs"
	@echo "make setup-dev  only create .venv for tests and conversion"
	@echo "                DEVICE=cuda or DEVICE=tpu after any of these: for a GPU, for a TPU"
	@echo "make setup-tpu-compiler"
	@echo "                fetch the TPU's compiler, which needs no TPU, into .venv/tpu"
	@echo "make lock       write requirements*.lock anew after a change of requirements*.txt"
	@echo "make locked     name each installed package that is not in the locks"
	@echo "make format     let ruff format and fix"
	@echo "make clean      remove .venv, caches, data/openmoji, data/openmoji_cells, runs/demo"

# PyTorch first: it asks for exact versions of NVIDIA's libraries, JAX for minimal ones.
setup: $(VENV)/.runtime $(STAMPS)
setup-search: setup $(VENV)/.search
setup-dev: $(VENV)/.dev $(STAMPS)
setup-tpu-compiler: setup $(TPU_COMPILER)

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

$(VENV)/.search: $(VENV)/.runtime requirements-search.txt requirements-search.lock
	@echo "Installing the packages of requirements-search.lock"
	$(LOCKED) -r requirements-search.lock
	$(call agree,-r requirements-search.txt,requirements-search.lock)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt requirements-search.txt \
  requirements-dev.lock
	@echo "Installing the packages of requirements-dev.lock, and PyTorch"
	$(LOCKED) -r requirements-dev.lock
	$(PIP) "$$(grep '^torch==' requirements-dev.txt)"
	$(call agree,-r requirements-dev.txt,requirements-dev.lock)
	@touch $@

# No hashes: these wheels are large and differ by platform.
$(VENV)/.device-%: requirements-%.txt $(VENV)/.runtime
	@echo "Installing the packages of $<"
	$(PIP) -r $<
	@touch $@

# libtpu compiles for a TPU without one. It is kept out of the environment: where JAX can
# import it, it looks for a TPU at every start. The folder is renamed when it is whole.
$(TPU_COMPILER): | $(VENV)/.venv-made
	@echo "Installing $(LIBTPU) into $(VENV)/tpu"
	rm -rf $(VENV)/tpu.new
	$(PIP) --no-deps --target $(VENV)/tpu.new $(LIBTPU)
	rm -rf $(VENV)/tpu
	mv $(VENV)/tpu.new $(VENV)/tpu

# uv has an environment of its own inside .venv.
$(UV): Makefile
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@touch $@

# What a lock holds stays where the lists allow it; UPGRADE=--upgrade takes the newest.
lock: $(UV)
	$(COMPILE) $(UPGRADE) requirements-dev.txt --output-file requirements-dev.lock
	cp requirements-dev.lock requirements.lock
	cp requirements-dev.lock requirements-search.lock
	$(COMPILE) requirements.txt --output-file requirements.lock
	$(COMPILE) --no-deps requirements-data.txt >> requirements.lock
	$(COMPILE) requirements-search.txt --output-file requirements-search.lock
	@for lock in requirements.lock requirements-search.lock requirements-dev.lock; do \
	  { echo "# Written by make lock. Every package is here, with the hashes of all its public"; \
	    echo "# files, PyTorch excepted: pip install --no-deps --require-hashes -r $$lock"; \
	    echo "# Resolved for Python 3.11 and later and for all systems; only Python 3.11 on"; \
	    echo "# Linux (x86-64) was run. Windows and macOS on Intel have no array-record."; \
	    awk '/^[^ #]/ { split($$1, part, "="); skip = part[1] ~ /$(UNLOCKED)/ } !skip' $$lock; \
	  } > $$lock.new && mv $$lock.new $$lock || exit 1; \
	done
	@for list in requirements-cuda.txt requirements-tpu.txt; do \
	  $(COMPILE) --constraints requirements.lock $$list > $(VENV)/uv/resolved || \
	  { echo "error: $$list cannot be installed on top of requirements.lock" >&2; exit 1; }; \
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
	@echo "Find      make app"
	@echo "Next      README.md, section \"Train on your own pictures\""
	@echo "Embed     $(BIN)/python main.py --workdir=runs/demo --mode=embed"
	@echo "Evaluate  $(BIN)/python main.py --workdir=runs/demo --mode=eval --config.eval.split=dev"

# The demo's run is used as it is, or made first.
app: setup-search
	@test -d runs/demo/checkpoints/best || $(MAKE) demo
	$(BIN)/python main.py --workdir=runs/demo --mode=index \
	  --config.search.pictures=data/openmoji/images
	$(BIN)/python main.py --workdir=runs/demo --mode=serve --config.search.open=True

study: setup-dev
	$(BIN)/python main.py --config=configs/openmoji_cells.py --mode=prepare
	$(BIN)/python -m studies.cells
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
	$(BIN)/python -m pytest -m "not slow and not gpu" $(WORKERS)

test-all: check setup-tpu-compiler
	$(BIN)/python -m pytest -m "not gpu" $(WORKERS)

# What the official program computed, and what only a GPU can show.
GOLDEN := $(patsubst %,tests/models/%_test.py,gpo bigru_encoder text_encoder resnet \
  image_encoder full_size) tests/training/trajectory_test.py

test-gpu: setup-dev
	JAX_PLATFORMS=cuda,cpu $(BIN)/python -m pytest $(GOLDEN)
	$(BIN)/python -m pytest -m gpu

# Playwright drives the machine's own Chromium; its packages are no part of the locks.
$(VENV)/.browser: $(VENV)/.dev requirements-browser.txt
	@echo "Installing the packages of requirements-browser.txt"
	$(PIP) --no-deps -r requirements-browser.txt
	@touch $@

CHROMIUM := command -v chromium || command -v chromium-browser || command -v google-chrome

test-browser: setup-dev $(VENV)/.browser
	@if ! { $(CHROMIUM); } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	  then echo "Installing Chromium"; apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium >/dev/null; fi
	@{ $(CHROMIUM); } >/dev/null || \
	  { echo "error: no Chromium; install it: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser

coverage: setup-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "not slow and not gpu"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --fail-under=95

# The demo's training is a row, too, but takes minutes of its own: --rows=demo, where
# make demo has prepared its pictures.
bench: setup-dev
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.report

bench-scaling: setup
	$(BIN)/python -m benchmarks.scaling

bench-pieces: setup
	$(BIN)/python main.py --config=configs/openmoji.py --mode=prepare
	$(BIN)/python -m benchmarks.sorted_pool
	$(BIN)/python -m benchmarks.data_loading
	$(BIN)/python main.py --config=configs/openmoji.py --mode=export
	$(BIN)/python -m benchmarks.records

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache data/openmoji data/openmoji_cells \
	  runs/demo
