# `make demo` trains a GPT, `make test` tests it. Both set up what they need in .venv first.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: demo test test-all lint docs bench clean

demo: .venv/ready-base
	$(BIN)/minitrain demo

test: .venv/ready-test
	$(BIN)/python -m pytest

test-all: .venv/ready-test
	$(BIN)/python -m pytest -m ""

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check minitrain benchmarks docs bootstrap.py
	$(BIN)/codespell

docs: .venv/ready-docs  # never with -q, which hides the warnings that --strict counts
	$(BIN)/python docs/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/ready-base
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf .venv site

.venv/ready-%: pyproject.toml constraints.txt bootstrap.py
	$(PYTHON) bootstrap.py $*
