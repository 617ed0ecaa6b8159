# The commands of README.md. PYTHON names the interpreter that makes .venv (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
# The locks hold the exact packages with their hashes. PyTorch and a device's packages
# differ by platform and index: pyproject.toml, the one list of packages, has their versions.
LOCKED := $(PIP) --no-deps --require-hashes
EXTRA := $(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", \
  "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'
DEVICE ?= cpu
$(if $(filter cpu cuda tpu,$(DEVICE)),,$(error error: DEVICE=$(DEVICE): cpu, cuda or tpu))

# make photos: what it needs and fetches is said before anything is installed.
SIGLIP2 := hf://google/siglip2-base-patch16-256
MODEL ?= $(SIGLIP2)
ifeq ($(MAKECMDGOALS),photos)
$(if $(PICTURES)$(wildcard runs/photos/index),,$(error error: PICTURES=FOLDER: name the folder of your photos))
$(if $(filter $(SIGLIP2),$(MODEL)),$(info SigLIP2 B/16-256 by Google (Apache-2.0, 1.5 GB) is fetched once, into ~/.cache/huggingface.))
endif

.NOTPARALLEL:
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.* \#\# .*/\1/p' Makefile)

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' Makefile
setup: $(VENV)/.runtime ## only make .venv, for running; DEVICE=cuda, DEVICE=tpu
	$(if $(filter-out cpu,$(DEVICE)),$(PIP) $$($(EXTRA) $(DEVICE)))
setup-search: setup $(VENV)/.search ## ... and for the search of your own photos
setup-dev: setup $(VENV)/.dev ## ... for tests and conversion
setup-tpu-compiler: setup $(VENV)/tpu/libtpu ## fetch the TPU's compiler; it needs no TPU
$(VENV)/.runtime: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is older than 3.11; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(LOCKED) -r $<
	@touch $@
$(VENV)/.search $(VENV)/.dev: $(VENV)/.%: requirements-%.lock $(VENV)/.runtime
	$(LOCKED) -r $<
	$(if $(filter dev,$*),$(PIP) $$($(EXTRA) convert))
	@touch $@
# libtpu compiles for a TPU without one. It is kept out of the environment: where JAX can
# import it, it looks for a TPU at every start.
$(VENV)/tpu/libtpu: pyproject.toml | $(VENV)/.runtime
	rm -rf $(VENV)/tpu $(VENV)/tpu.new
	$(PIP) --no-deps --target $(VENV)/tpu.new $$($(EXTRA) tpu | grep libtpu) && mv $(VENV)/tpu.new $(VENV)/tpu
# Tools in environments of their own: uv finds versions in seconds; docs makes the site.
$(VENV)/uv $(VENV)/docs: $(VENV)/%: pyproject.toml | $(VENV)/.runtime
	$(PYTHON) -m venv --clear $@ && $@/bin/pip install --quiet $$($(EXTRA) $*) && touch $@
# What a lock holds stays where pyproject.toml allows it; UPGRADE=--upgrade takes the newest.
COMPILE := $(VENV)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 \
  --fork-strategy fewest --generate-hashes --no-header --no-emit-index-url --no-annotate
lock: $(VENV)/uv ## write requirements*.lock again after a change of pyproject.toml
	$(COMPILE) $(UPGRADE) pyproject.toml --extra dev --output-file requirements-dev.lock
	cp requirements-dev.lock requirements-search.lock; cp requirements-dev.lock requirements.lock
	$(COMPILE) pyproject.toml --extra search --output-file requirements-search.lock
	$(COMPILE) pyproject.toml --extra demo --extra bigru --extra eccv --output-file requirements.lock
	$(EXTRA) data | $(COMPILE) --no-deps - >> requirements.lock

RUN := $(BIN)/python main.py
demo: setup ## prepare OpenMoji icons, train, test, draw (3 to 10 minutes)
	$(RUN) --config=configs/openmoji.py --mode=prepare
	$(RUN) --config=configs/openmoji.py --workdir=runs/demo
	@echo "Look at runs/demo/retrieval.png and runs/demo/curves.png; find the drawings: make app; your photographs: make photos"
app: setup-search ## find the demo's drawings by words, in a browser
	@test -d runs/demo/checkpoints || $(MAKE) demo
	$(RUN) --workdir=runs/demo --mode=index --config.search.pictures=data/openmoji/images
	$(RUN) --workdir=runs/demo --mode=serve --config.search.open=True
photos: setup-search ## find your photos by words: PICTURES=~/Pictures [MODEL=FOLDER or hf://...]
	$(RUN) --model="$(MODEL)" --workdir=runs/photos --mode=index \
	  $(if $(PICTURES),--config.search.pictures="$(PICTURES)")
	$(RUN) --model="$(MODEL)" --workdir=runs/photos --mode=serve --config.search.open=True
study: setup-dev ## compare the poolings on cells of a pretrained CNN (hours; resumes)
	$(RUN) --config=configs/openmoji_cells.py --mode=prepare
	$(BIN)/python -m studies.cells && $(BIN)/python -m studies.pooling
check: setup-dev ## ruff, mypy, import-linter
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache
# A file's tests share what they have trained, so a file is one worker's.
PYTEST := -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
QUICK := -m "not system and not slow and not gpu"
test: check ## the same, and the tests
	$(BIN)/python $(PYTEST) $(QUICK)
test-system: setup-dev ## programs in processes of their own: starts, kills, servers
	$(BIN)/python $(PYTEST) -m "system and not slow and not gpu"
test-all: check setup-tpu-compiler ## all tests but those of a GPU, a browser and the wheel
	$(BIN)/python $(PYTEST) -m "not gpu"
test-gpu: setup-dev ## the golden tests and those of GPUs, on an NVIDIA GPU
	JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -m "golden or gpu"
test-browser: setup-dev ## the search page in Chromium, which apt installs for root
	$(PIP) --no-deps $$($(EXTRA) browser)
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null; } || \
	  { echo "error: no Chromium; install it: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser
test-wheel: setup-dev ## wheel and sdist, and each extra in an environment of its own (20 minutes)
	PYTHON=$(PYTHON) $(BIN)/python -m pytest tests/wheel
NEWEST := $(VENV)/newest/bin/python
test-newest: $(VENV)/uv ## the tests with the newest packages that pyproject.toml allows
	$(PYTHON) -m venv --clear $(VENV)/newest
	$(VENV)/uv/bin/uv pip install --quiet --python $(NEWEST) '.[dev,convert]'
	$(VENV)/uv/bin/uv pip install --quiet --python $(NEWEST) --no-deps $$($(EXTRA) data)
	$(NEWEST) $(PYTEST) $(QUICK)
coverage: setup-dev ## the lines that the tests reach, in percent
	$(BIN)/python -m coverage erase && $(BIN)/python -m coverage run -m pytest -m "not slow and not gpu"
	$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report --skip-covered --fail-under=95
bench: setup-dev ## our speed and PyTorch's (docs/lab/performance.md; 40 minutes)
	$(BIN)/python -m benchmarks.compare && $(BIN)/python -m benchmarks.report
bench-%: setup-dev ## one benchmark: scaling, search, serve, records, sorted_pool, ...
	$(BIN)/python -m benchmarks.$*
wheel: setup ## the package as a file, dist/vse_jax-….whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
# The pages lie there as in the clone, so that their links are the same.
docs: $(VENV)/docs ## the pages and the reference of the Python API, as build/site/index.html
	rm -rf build/pages && mkdir -p build/pages
	cp -r *.md LICENSE NOTICE CITATION.cff docs examples build/pages
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --config-file docs/mkdocs.yml
format: setup-dev ## let ruff format and fix
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
clean: ## remove .venv, caches, build, data/openmoji*, runs/demo
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist data/openmoji* runs/demo
