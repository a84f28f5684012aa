# Everything a newcomer needs: `make quickstart`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup quickstart test test-all test-arm64 lint format bench docs clean constraints

help:
	@echo "make quickstart   set up, then build, verify and measure the shipped model"
	@echo "make test         set up, then lint, type-check and run the tests that every change must pass (minutes)"
	@echo "make test-all     the same, with the long tail: every family, SM and damaged byte"
	@echo "make test-arm64   what runs on a device, on emulated Arm boards (Debian with qemu-user-static; minutes)"
	@echo "make lint         ruff, mypy and import-linter"
	@echo "make docs         the documents as a site, in site/"
	@echo "make bench        the benchmarks that the README's figures come from"

setup: $(VENV)/.ready

# uv installs the five gigabytes that torch brings in a fraction of pip's time. Unlike pip it leaves the modules to be
# compiled by whoever imports them: where Python may write no bytecode, by every process again (8 s for torch).
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo "error: $$($(PYTHON) --version); expected Python 3.10 to 3.13; run: make PYTHON=python3.11 ..." >&2; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[build,transformers,tensorrt-rtx,openvino,tune,sign,dev,docs]'
	@touch $@

quickstart: setup
	$(BIN)/ztdeploy quickstart --force
	@echo "ztdeploy is in $(BIN); to call it by its name: . $(BIN)/activate"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# By file, for files share what takes long to set up; in tests/conftest.py's order, which begins with the slowest.
test: lint
	$(PYTEST) -m "not long"

test-all: lint
	$(PYTEST)

# Boards of 64-bit Arm, emulated: scripts/arm64.sh says what it takes.
test-arm64: setup
	PYTHON=$(BIN)/python scripts/arm64.sh build/arm64
	ZTDEPLOY_ARM64=build/arm64 $(BIN)/pytest tests/arm64

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.footprint

docs: setup
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

# Versions that are known to work together, for every supported Python; no addresses in it.
constraints: setup
	$(BIN)/uv pip compile pyproject.toml --extra build --extra transformers --extra tensorrt-rtx --extra dev --extra tune --extra sign --extra openvino --extra docs --universal --python-version 3.10 \
		--upgrade --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file constraints.txt

clean:
	rm -rf $(VENV) dist build site quickstart .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
