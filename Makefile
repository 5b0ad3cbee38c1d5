PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUBS := client/python/alignserve/v1
PROTO := alignserve/v1/align_service.proto

.PHONY: help setup run test lint format typecheck protos bench clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything that the other targets need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[server]' --group dev
	@touch $@

run: $(STAMP) ## Start a server on the embedded checkpoint, classify a photo, keep serving
	@$(BIN)/python -m deploy.quickstart

test: lint typecheck ## Run every check and every test
	$(BIN)/python -m pytest

lint: $(STAMP) ## Check style, import direction, protos and generated stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python protos/check.py

format: $(STAMP) ## Rewrite Python and protos in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

typecheck: $(STAMP) ## Check types
	$(BIN)/mypy

protos: $(STAMP) ## Generate the Python stubs from the protos
	$(BIN)/python protos/generate.py $(STUBS)/../..

bench: $(STAMP) ## Measure latency and throughput on this machine
	$(BIN)/python -m tests.load

clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
