# `make demo` trains a GPT, `make test` tests it. Both set up what they need in .venv first.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: demo test test-all lint docs docs-sources docs-zensical browser bench clean

demo: .venv/ready-base
	$(BIN)/minitrain demo

test: .venv/ready-test
	$(BIN)/python -m pytest

test-all: .venv/ready-test
	$(BIN)/python -m pytest -m "not browser"

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check minitrain lessons benchmarks docs bootstrap.py
	$(BIN)/codespell

docs: docs-sources  # never with -q, which hides the warnings that --strict counts
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/check.py

docs-sources: .venv/ready-docs
	$(BIN)/python docs/katex.py
	$(BIN)/python docs/tables.py

ZENSICAL := zensical==0.0.73
docs-zensical: docs-sources  # the same pages, into the same site/, by the theme's successor, where pip finds it
	if $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(ZENSICAL); \
	then $(BIN)/zensical build --strict && $(BIN)/python docs/check.py; \
	else echo "$(ZENSICAL) could not be installed, so the pages were not tried with it"; fi

browser: docs .venv/ready-test .venv/ready-browser  # each page in a Chromium: light, dark, as wide as a phone
	$(BIN)/python -m pytest -m browser -rs tests/browser

bench: .venv/ready-base
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/rotation.py
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/lessons.py

clean:
	rm -rf .venv .cache build node_modules site docs/assets/katex

.venv/ready-%: pyproject.toml constraints.txt bootstrap.py
	$(PYTHON) bootstrap.py $*
