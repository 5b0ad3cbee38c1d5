PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/.installed-server
DEVELOP := $(VENV)/.installed
BASELINE := protos/baseline.binpb
LOWEST := $(VENV)/lowest
UV := UV_PYTHON_DOWNLOADS=never $(BIN)/uv
# PyPI's torch for Linux includes CUDA. An index of CPU builds avoids most of that, such as
# https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# MB of disk, as pip keeps what it downloaded until all of it is installed
INSTALLING = $(if $(TORCH_INDEX),4000,10000)
# Two workers more than cores, since tests also wait; at most four, since the tests' timeouts assume few workers.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
# Workers load the plugins of all packages; cloudcoil's takes a second, and no test uses it.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --max-worker-restart 0 -p no:cloudcoil
# Targets that `make test-all` runs after `make test`.
LONG_CHECKS := gpu-check conformance test-fronts
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# Tests start hundreds of processes. Without bytecode, each would compile the sources for a third of a second.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
# If creating .venv fails, as on a Debian without python3-venv, the next run creates it again.
.DELETE_ON_ERROR:
.PHONY: help announced setup run check test test-all hostile lint format typecheck protos baseline docs bench soak
.PHONY: test-fronts clients conformance gpu-check peers test-lowest dist clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEVELOP) ## Create .venv with everything that the other targets need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "alignserve needs Python 3.11 or later, and $(PYTHON) is %d.%d; choose another one, as in: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --quiet pip

$(SERVE): pyproject.toml server/pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the server for CPUs into $(VENV): 410 MB, half a minute ..."
	@$(PIP) --quiet -e . -e './server[http]'
	@touch $@

$(DEVELOP): $(SERVE)
	@echo "Installing torch and the tools into $(VENV): $(if $(TORCH_INDEX),2.2 GB from $(TORCH_INDEX),7 GB; 2.2 GB with TORCH_INDEX=https://download.pytorch.org/whl/cpu), some minutes ..."
	@df -Pm . | awk 'NR == 2 && $$4 < $(INSTALLING) {print "This may fail: it takes $(INSTALLING) MB of disk while it installs, and " $$4 " MB are free."}'
	@$(PIP) --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[bench,datasets,search,curate]' -e './server[torch,http,int8,heif,otel]' --group dev
	@touch $@

run: $(SERVE) ## Start a server on the embedded checkpoint, classify a photo, keep serving
	@$(BIN)/python -m deploy.quickstart $(if $(PORT),--port $(PORT)) $(if $(METRICS_PORT),--metrics-port $(METRICS_PORT)) $(FLAGS)

# Each of these first prints what it runs and how long it takes, on 2 idle cores.
check: RUNS = linters, types, tests of modules and of clients: a minute, and two the first time
check: announced lint typecheck ## Run linters, types, and the tests of modules and clients: a minute
	$(PYTEST) -m "not long" tests/unit tests/client

test: RUNS = linters, types and every test except the long ones: five minutes
test: announced lint typecheck ## Run everything that a change must pass: five minutes
	$(PYTEST) -m "not long"

test-all: test $(LONG_CHECKS) ## Run these and the long tests, as continuous integration does: half an hour
	@echo "This runs the long tests: up to ten minutes."
	$(PYTEST) -m "long or hypothesis" --hypothesis-profile long --timeout 900

# Files about several processes start them in either case, so they are left out.
test-fronts: $(DEVELOP) ## Run the integration tests with the model in a device process: two minutes
	$(PYTEST) --shape fronts -m "not long and not whole" tests/integration \
	  --ignore tests/integration/test_front_processes.py --ignore tests/integration/test_shared_device.py \
	  --ignore tests/integration/test_workers.py --ignore tests/integration/test_plan.py

announced: $(DEVELOP)
	@echo "This runs $(RUNS)."

hostile: $(DEVELOP) ## Fetch files made to break parsers, and send them to a live server
	-@$(BIN)/python -m tests.hostile.corpora
	$(BIN)/python -m pytest -m hostile

lint: $(DEVELOP) ## Check style, wording, import direction, protos and generated stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.contract.wording
	$(BIN)/python protos/generate.py --check
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against $(BASELINE)

format: $(DEVELOP) ## Rewrite Python and protos in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

typecheck: $(DEVELOP) ## Check types
	$(BIN)/mypy --num-workers 2

protos: $(DEVELOP) ## Generate the Python stubs from the protos
	$(BIN)/python protos/generate.py

clients: $(DEVELOP) ## Generate and build the code of the client libraries whose compilers are installed
	$(BIN)/python -m tests.conformance --build $(FLAGS)

baseline: $(DEVELOP) ## At a release, record the API that later releases must not break
	$(BIN)/python protos/generate.py --image $(BASELINE)

docs: $(DEVELOP) ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file deploy/docs/mkdocs.yml

bench: $(DEVELOP) ## Measure latency and throughput on this machine, compared with the servers of `make peers`
	$(BIN)/python -m tests.load $(FLAGS)

conformance: $(DEVELOP) ## Run the same cases in every language, and published clients: up to twenty minutes
	$(BIN)/python -m tests.conformance $(FLAGS)

soak: $(DEVELOP) ## Load a server for ten minutes and look for leaks
	$(BIN)/python -m tests.load.soak $(FLAGS)

gpu-check: $(DEVELOP) ## Check and measure on this machine's GPU; without one, test the check itself
	$(BIN)/python -m tests.gpu run $(FLAGS)

peers: $(DEVELOP) ## Install the other servers that `make bench` measures: 1.3 GB, minutes
	$(BIN)/python -m tests.load.peers.environments $(NAMES)

test-lowest: $(DEVELOP) ## Run unit, client and integration tests on the lowest supported versions
	$(UV) venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST) --resolution lowest-direct -e '.[bench,datasets,search,curate]' -e './server[http,heif,otel]'
	$(UV) pip freeze --quiet --python $(LOWEST) --exclude-editable >$(LOWEST)/constraints.txt
	$(UV) pip install --quiet --python $(LOWEST) --constraint $(LOWEST)/constraints.txt --group test
	$(LOWEST)/bin/python -m pytest tests/unit tests/client tests/integration --ignore tests/client/test_types.py

dist: $(DEVELOP) ## Build both distributions into dist/, and check their contents
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --outdir dist server
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.release.distributions dist

clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
