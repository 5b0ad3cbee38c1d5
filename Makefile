PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IMAGE := $(VENV)/protos.binpb
BASELINE := protos/baseline.binpb

.DEFAULT_GOAL := help
.PHONY: help setup run test hostile lint format typecheck protos baseline bench soak peers clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything that the other targets need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[server,openvino,int8,otel,bench]' --group dev
	@touch $@

run: $(STAMP) ## Start a server on the embedded checkpoint, classify a photo, keep serving
	@$(BIN)/python -m deploy.quickstart $(if $(PORT),--port $(PORT)) $(if $(METRICS_PORT),--metrics-port $(METRICS_PORT)) $(FLAGS)

test: lint typecheck ## Run every check and every test
	$(BIN)/python -m pytest

hostile: $(STAMP) ## Fetch files made to break what reads them, and send them to a live server
	-@$(BIN)/python -m tests.hostile.corpora
	$(BIN)/python -m pytest -m hostile

lint: $(STAMP) ## Check style, import direction, protos and generated stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python protos/generate.py --check
	$(BIN)/buf format --diff --exit-code protos
	@# buf would fetch google/rpc from its registry; protoc has it at hand, so buf reads protoc's image.
	$(BIN)/python protos/generate.py --image $(IMAGE)
	$(BIN)/buf lint $(IMAGE) --config protos/buf.yaml
	$(BIN)/buf breaking $(IMAGE) --against $(BASELINE) --config protos/buf.yaml

format: $(STAMP) ## Rewrite Python and protos in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

typecheck: $(STAMP) ## Check types
	$(BIN)/mypy

protos: $(STAMP) ## Generate the Python stubs from the protos
	$(BIN)/python protos/generate.py

baseline: $(STAMP) ## At a release, record its API as what later ones must not break
	$(BIN)/python protos/generate.py --image $(BASELINE)

bench: $(STAMP) ## Measure latency and throughput on this machine, beside others that are installed
	$(BIN)/python -m tests.load $(FLAGS)

soak: $(STAMP) ## Load a server for ten minutes and look for what grows
	$(BIN)/python -m tests.load.soak $(FLAGS)

peers: $(STAMP) ## Install the servers that `make bench` compares with
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --group peers

clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
