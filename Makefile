# `make demo` and `make test` do all set-up on a fresh machine: .venv here, packages from the registries, the C++ build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo test check bench wheel test-wheel clean

demo: $(READY)
	$(BIN)/fastdetect demo --output demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0

check: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m bench all --seconds 2

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[bench]"
	touch $@

# One wheel: the CPU op library and, where nvcc is found, the CUDA op library. FASTDETECT_CUDA=ON insists on it.
wheel: $(READY)
	rm -f dist/fastdetect-*.whl
	$(BIN)/pip wheel --no-deps --no-build-isolation -w dist .

# `make test-wheel TORCH=2.11.0`: the wheel in a fresh environment with that torch (a download of 3 GB), op tests. One
# resolution for all: pip would replace the torch for the newest torchvision's, were the wheel installed after it.
WHEEL_ENV ?= build/wheel-torch-$(TORCH)
WHEEL_TESTS := tests/ops tests/kernels/test_interpreter.py tests/test_losses.py tests/test_integrations.py
test-wheel: wheel
	test -n "$(TORCH)" || { echo "want the torch to test with: make test-wheel TORCH=2.11.0" >&2; exit 2; }
	rm -rf $(WHEEL_ENV)
	$(PYTHON) -m venv $(WHEEL_ENV)
	$(WHEEL_ENV)/bin/python -m pip install --quiet "torch==$(TORCH)" "transformers>=5,<6" pytorch-metric-learning==2.9.0 \
		pytest pytest-timeout hypothesis dist/fastdetect-*.whl
	cd $(WHEEL_ENV) && bin/python -c 'import torch, fastdetect, fastdetect._host as h; print(torch.__version__, fastdetect.__file__, h.build_info()); assert torch.__version__.split("+")[0] == "$(TORCH)"'
	cd $(WHEEL_ENV) && bin/python -m pytest -q -p no:cacheprovider $(addprefix $(CURDIR)/,$(WHEEL_TESTS))

$(READY): $(SOURCES)
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}; run: make PYTHON=/path/to/python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel "cmake>=3.28" ninja "pybind11>=3.0"
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.16"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV)
