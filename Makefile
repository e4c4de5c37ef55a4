# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11 and a C++ compiler
# are needed, nvcc is used if it is there. Everything goes into .venv, once.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
INSTALL := $(PIP) --no-build-isolation --config-settings=cmake.define.LANDSCAPEX_EMULATED_CUDA=ON
# The checkout's own folder stays off the path, here and in child processes: what is tested is the
# installed package with its compiled libraries.
PYTEST := PYTHONSAFEPATH=1 $(BIN)/python -m pytest
TORCH := torch==2.13.0
BUILD := scikit-build-core cmake ninja pybind11
SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE \
    $(shell find landscapex csrc tests/emulation -type f ! -name '*.pyc')
NATIVE := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test check docs bench roofline data clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/landscapex demo

test: .venv/installed .venv/data
	$(PYTEST) -n 2 -m "not slow" tests

check: .venv/installed .venv/checkers .venv/data
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy landscapex
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(PYTEST) -n 2 -m slow tests
	$(PYTEST) -n 2 tests/test_other_*.py
	$(MAKE) docs
	@if command -v nvcc > /dev/null; then $(BIN)/python tests/native/compile_matrix.py; \
	else echo "There is no nvcc: CUDA kernels were not compiled for the architectures."; fi

# Into docs/_build/html. The pictures are made anew whenever the package was.
docs: .venv/installed .venv/checkers
	@[ docs/_build/html -nt .venv/installed ] || rm -rf docs/_build docs/pictures
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "The documentation is in docs/_build/html/index.html."

# Writes benchmarks/RESULTS.md; `pytest benchmarks -k quick` takes the smallest sizes instead.
bench: .venv/installed .venv/checkers .venv/data
	mkdir -p benchmarks/out
	$(PYTEST) benchmarks -k "not quick" --benchmark-only \
	    --benchmark-json=benchmarks/out/benchmarks.json
	$(BIN)/python benchmarks/report.py benchmarks/out/benchmarks.json

# What the CUDA kernels would take on an H100: estimated from what nvcc makes of them, never measured.
roofline: .venv/installed
	$(PIP) --no-deps nvidia-cuda-nvdisasm==13.5.37
	$(BIN)/python benchmarks/roofline.py

data:
	rm -f .venv/data
	$(MAKE) .venv/data

clean:
	rm -rf build dist landscapex-demo benchmarks/out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf docs/_build docs/pictures
	find landscapex tests benchmarks csrc -name __pycache__ -prune -exec rm -rf {} +
	rm -f .venv/installed

.venv/torch: .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH) $(BUILD)
	touch $@

.venv/installed: .venv/torch $(SOURCES)
	$(INSTALL) '.[test]' pytest-xdist scikit-learn
	touch $@

# The other tools come without their dependencies, which would replace NumPy.
.venv/checkers: .ci/constraints.txt .ci/oracles.txt | .venv/torch
	$(PIP) ruff mypy clang-format furo myst-parser sphinx sphinx-gallery
	$(PIP) --no-deps -r .ci/oracles.txt
	touch $@

# Fashion-MNIST, by Debian package and without touching the system. Tests that need it skip without.
.venv/data: | .venv/torch
	@if [ -d /usr/share/datasets/fashion-mnist ]; then echo "Fashion-MNIST is installed."; \
	elif mkdir -p .venv/datasets && cd .venv/datasets \
	    && apt-get -qq download dataset-fashion-mnist 2> /dev/null && dpkg -x dataset-*.deb . ; \
	then rm -f dataset-*.deb; echo "Fashion-MNIST is in .venv/datasets."; \
	else echo "Fashion-MNIST cannot be fetched here: tests that need it will be skipped."; fi
	@touch $@
