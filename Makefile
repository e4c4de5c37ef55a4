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

.PHONY: demo test check docs bench compared reliability roofline dist wheels data clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/landscapex demo

test: .venv/installed .venv/data
	$(PYTEST) -n 2 -m "not slow" tests

check: .venv/installed .venv/checkers .venv/data .venv/browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy landscapex
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(PYTEST) -n 2 --dist worksteal -m "slow and not thorough" tests
	$(PYTEST) -n 2 tests/test_other_*.py
	$(PYTEST) tests/test_export_paraview.py
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

# Fetches other tools into a folder that is thrown away, asks them and landscapex questions with known
# answers, and writes docs/compared.md.
compared: .venv/installed
	$(BIN)/python benchmarks/compare.py docs/compared.md

# Kills, damages, interrupts and mutates at full count, an hour and a half on two cores; writes what came of
# it into docs/reliability.md. `tests/reliability/run.py R1 --share 0.01` takes less of it.
reliability: .venv/installed .venv/checkers
	$(PIP) atheris
	PYTHONSAFEPATH=1 $(BIN)/python tests/reliability/run.py --page docs/reliability.md

# What the CUDA kernels would take on an H100: estimated from what nvcc makes of them, never measured.
roofline: .venv/installed
	$(PIP) --no-deps nvidia-cuda-nvdisasm==13.5.37
	$(BIN)/python benchmarks/roofline.py

# Into dist/: the archive of the sources, and a wheel for this machine that is made from it.
dist: .venv/torch
	rm -rf dist
	$(BIN)/python -c "import sys; sys.path.insert(0, 'csrc'); import lx_backend as b; b.build_sdist('dist')"
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz

# Wheels for every Python, in dist/, as pyproject.toml says; needs Docker on Linux.
wheels: .venv/torch
	$(PIP) cibuildwheel
	$(BIN)/cibuildwheel --output-dir dist

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
	$(PIP) ruff mypy clang-format furo myst-nb sphinx sphinx-gallery ziglang 'transformers[torch]' lightning
	$(PIP) --no-deps -r .ci/oracles.txt vtk
	touch $@

# Chromium without a window, by Debian packages and without touching the system: it and what it needs
# that is not installed. The tests that open pages skip without.
.venv/browser: | .venv/torch
	@if command -v chromium-headless-shell || command -v chromium || command -v google-chrome; then \
	    echo "There is a browser."; \
	elif mkdir -p .venv/chromium && cd .venv/chromium \
	    && apt-get -qq install --simulate --no-install-recommends chromium-headless-shell \
	        2> /dev/null | sed -n 's/^Inst \([^ ]*\).*/\1/p' | xargs apt-get -qq download 2> /dev/null \
	    && for package in *.deb; do dpkg -x "$$package" . 2> /dev/null; done \
	    && [ -x usr/lib/chromium/chromium-headless-shell ]; \
	then rm -f *.deb; echo "Chromium is in .venv/chromium."; \
	else echo "Chromium cannot be fetched here: tests that need it will be skipped."; fi
	@touch $@

# Fashion-MNIST, by Debian package and without touching the system. Tests that need it skip without.
.venv/data: | .venv/torch
	@if [ -d /usr/share/datasets/fashion-mnist ]; then echo "Fashion-MNIST is installed."; \
	elif mkdir -p .venv/datasets && cd .venv/datasets \
	    && apt-get -qq download dataset-fashion-mnist 2> /dev/null && dpkg -x dataset-*.deb . ; \
	then rm -f dataset-*.deb; echo "Fashion-MNIST is in .venv/datasets."; \
	else echo "Fashion-MNIST cannot be fetched here: tests that need it will be skipped."; fi
	@touch $@
