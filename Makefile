# `make` lists the targets. Variables: PYTHON and TORCH choose what .venv is made of, SONG what the demo separates.
PYTHON ?= python3
TORCH ?= torch==2.13.0
SONG ?=

BIN := .venv/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
.DEFAULT_GOAL := help
.PHONY: help install demo test test-long lint format bench sdist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch and the build's tools first: the package is then built against them, without a build environment of its own, so
# that Ninja compiles only what changed.
.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet '$(TORCH)' 'setuptools>=77' 'cmake>=3.24' ninja
	@touch $@

.venv/.installed: .venv/.torch $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

install: .venv/.installed ## make .venv with torch, the package (editable) and all tools

demo: .venv/.installed ## separate SONG (or a built-in example) and say where the stems are
	$(BIN)/python examples/demo.py $(if $(SONG),'$(SONG)')

test: .venv/.installed ## run the tests, but for the slow ones
	$(BIN)/python -m pytest

test-long: .venv/.installed ## separate a song of three hours, and look at the memory (ten minutes)
	$(BIN)/python -m pytest -s -m slow tests/test_long_song.py

lint: .venv/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed ## sort imports, lay out Python, and C++ where there is clang-format
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .
	if command -v clang-format; then clang-format -i $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu*'); fi

bench: .venv/.installed ## run every script in benchmarks/
	for script in benchmarks/*.py; do $(BIN)/python "$$script" || exit 1; done

sdist: .venv/.installed ## write the source distribution to dist/
	$(BIN)/python setup.py --quiet sdist

clean: ## remove what was built, but for .venv
	rm -rf build dist *.egg-info pyunetsep/_C.*.so .pytest_cache .hypothesis .benchmarks .mypy_cache .ruff_cache
	rm -f .venv/.installed
	find pyunetsep tests -name __pycache__ -type d -prune -exec rm -rf {} +
