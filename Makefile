.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install train test test-slow lint format bench clean smoke-all

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

install: $(INSTALLED)  ## Make .venv with the pinned versions

train: $(INSTALLED)  ## Train LeNet-5 on handwritten digits
	$(BIN)/cnn-train

test: $(INSTALLED)  ## Run the fast tests
	$(BIN)/pytest -n auto

test-slow: $(INSTALLED)  ## Run the tests that take minutes
	$(BIN)/pytest -n auto -m slow

smoke-all: $(INSTALLED)  ## Train every network for a moment and show a table
	$(BIN)/python benchmarks/smoke_all.py

lint: $(INSTALLED)  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## Compare a training step with a plain PyTorch loop
	$(BIN)/python benchmarks/step_overhead.py

clean:  ## Remove what can be made again, but no runs
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
