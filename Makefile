.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
INSTALLED := $(VENV)/.installed

.PHONY: help install train test test-slow test-gpu lint format bench bench-gpu docs lock clean smoke-all

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	test -d $(BIN) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

install: $(INSTALLED)  ## Make .venv with the pinned versions

train: $(INSTALLED)  ## Train LeNet-5 on handwritten digits
	$(BIN)/cnn-train

test: $(INSTALLED)  ## Run the fast tests
	$(BIN)/pytest -n auto

test-slow: $(INSTALLED)  ## Run the tests that take minutes
	$(BIN)/pytest -n auto -m slow

test-gpu: $(INSTALLED)  ## Run the tests that need a GPU
	$(BIN)/pytest -m gpu -n 4

smoke-all: $(INSTALLED)  ## Train every network for a moment and show a table
	$(BIN)/python benchmarks/smoke_all.py

lint: $(INSTALLED)  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## Measure speed against its goals: one table, some minutes on a quiet machine
	$(BIN)/python benchmarks/table.py

bench-gpu: $(INSTALLED)  ## Compare training on a GPU with hand-written loops and stock Lightning
	$(BIN)/python benchmarks/gpu.py

docs: $(INSTALLED)  ## Build the site into build/site, strictly: a broken link is an error
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lock: $(INSTALLED)  ## Write requirements.lock: the pinned versions with the hashes of their files
	$(BIN)/python -m pip install --disable-pip-version-check -q uv
	$(BIN)/uv pip compile -q pyproject.toml --extra dev -c constraints.txt --python-version 3.11 --generate-hashes \
		--no-annotate --no-emit-index-url --no-header -o requirements.lock > /dev/null

clean:  ## Remove build products; keep runs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
