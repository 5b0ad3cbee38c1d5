PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/.installed-server
DEVELOP := $(VENV)/.installed
IMAGE := $(VENV)/protos.binpb
BASELINE := protos/baseline.binpb
# PyPI's torch for Linux brings CUDA along. An index of CPU builds saves most of that, such as
# https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
# A .venv whose making failed, as on a Debian without python3-venv, is made anew by the next run.
.DELETE_ON_ERROR:
.PHONY: help announced setup run test hostile lint format typecheck protos baseline bench soak gpu-check peers clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEVELOP) ## Create .venv with everything that the other targets need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "alignserve needs Python 3.11 or later, and $(PYTHON) is %d.%d; name another one, as in: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --quiet pip

$(SERVE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the server for CPUs into $(VENV): 410 MB, half a minute ..."
	@$(PIP) --quiet -e '.[server]'
	@touch $@

$(DEVELOP): $(SERVE)
	@echo "Installing torch and the tools into $(VENV): $(if $(TORCH_INDEX),2.2 GB from $(TORCH_INDEX),6 GB; 2.2 GB with TORCH_INDEX=https://download.pytorch.org/whl/cpu), some minutes ..."
	@$(PIP) --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[server,torch,int8,heif,otel,bench]' --group dev
	@touch $@

run: $(SERVE) ## Start a server on the embedded checkpoint, classify a photo, keep serving
	@$(BIN)/python -m deploy.quickstart $(if $(PORT),--port $(PORT)) $(if $(METRICS_PORT),--metrics-port $(METRICS_PORT)) $(FLAGS)

test: announced lint typecheck ## Run every check and every test
	$(BIN)/python -m pytest

announced: $(DEVELOP)
	@echo "Every check and every test: about 10 minutes on 2 cores."

hostile: $(DEVELOP) ## Fetch files made to break what reads them, and send them to a live server
	-@$(BIN)/python -m tests.hostile.corpora
	$(BIN)/python -m pytest -m hostile

lint: $(DEVELOP) ## Check style, import direction, protos and generated stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python protos/generate.py --check
	$(BIN)/buf format --diff --exit-code protos
	@# buf would fetch google/rpc from its registry; protoc has it at hand, so buf reads protoc's image.
	$(BIN)/python protos/generate.py --image $(IMAGE)
	$(BIN)/buf lint $(IMAGE) --config protos/buf.yaml
	$(BIN)/buf breaking $(IMAGE) --against $(BASELINE) --config protos/buf.yaml

format: $(DEVELOP) ## Rewrite Python and protos in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

typecheck: $(DEVELOP) ## Check types
	$(BIN)/mypy

protos: $(DEVELOP) ## Generate the Python stubs from the protos
	$(BIN)/python protos/generate.py

baseline: $(DEVELOP) ## At a release, record its API as what later ones must not break
	$(BIN)/python protos/generate.py --image $(BASELINE)

bench: $(DEVELOP) ## Measure latency and throughput on this machine, beside others that are installed
	$(BIN)/python -m tests.load $(FLAGS)

soak: $(DEVELOP) ## Load a server for ten minutes and look for what grows
	$(BIN)/python -m tests.load.soak $(FLAGS)

gpu-check: $(DEVELOP) ## Check and measure on this machine's GPU; without one, check the check
	$(BIN)/python -m tests.gpu run $(FLAGS)

peers: $(DEVELOP) ## Install the servers that `make bench` compares with
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --group peers

clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
