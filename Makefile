# make setup   a virtual environment in .venv with torch pinned and everything built
# make demo    train with uniform and with adaptive weights, side by side, and show the difference
# make test    style, types, tests, coverage
# make bench   every operator against its baselines on this CPU, and the table in README.md; ten minutes
# make sanitize   the compiled code under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer; five minutes
# make help    this list

PYTHON ?= python3
# On a machine without an NVIDIA GPU a CPU build saves gigabytes: make setup TORCH=<its wheel>
TORCH  ?= torch==2.13.0
# Whether to build the CUDA operators (0, 1, auto): where there is a GPU. The tests compile them wherever nvcc is.
CAWA_FAST_CUDA ?= $(if $(shell command -v nvidia-smi),auto,0)
VENV   := .venv
BIN    := $(VENV)/bin
EPOCHS ?= 24
# few images and few epochs want small batches, a higher rate than the paper's and less enlargement
DEMO   := --resume --no-tables --epochs $(EPOCHS) --batch-size 4 --lr 0.05 --scale 0.75,1.5

.PHONY: help setup demo test bench sanitize check clean

help:
	@sed -n 's/^# //p' Makefile | head -6

setup: $(VENV)/.done

# torch first: csrc/ compiles against it, and build isolation would fetch another. torchvision without its
# dependencies: only the baselines in tests and benchmarks import it. Triton 3.6, which came with torch 2.11, for tests beside the newest. CAWA_FAST_PORTABLE: so that the tests run what other processors run.
$(VENV)/.done: pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/* csrc/* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/python -m pip install --quiet "cmake>=3.25" ninja "pybind11>=2.13"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton-3.6 triton==3.6.0
	CAWA_FAST_CUDA=$(CAWA_FAST_CUDA) CMAKE_ARGS="-DCAWA_FAST_PORTABLE=ON $(CMAKE_ARGS)" $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,models,test,dev]"
	@$(BIN)/cawa-fast doctor
	@touch $@

# Both runs continue where they stopped; `rm -r runs/demo` starts afresh.
demo: setup
	$(BIN)/cawa-fast train $(DEMO) --weighting uniform --run-dir runs/demo/uniform
	$(BIN)/cawa-fast train $(DEMO) --weighting cawa --run-dir runs/demo/cawa
	$(BIN)/cawa-fast report runs/demo/uniform runs/demo/cawa --out runs/demo/report.html

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each are faster than one process of two threads: most tests are small.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --cov --cov-report=term --durations=30

bench: setup
	$(BIN)/python -m bench cpu
	$(BIN)/python -m bench readme

sanitize: setup
	PYTHON=$(BIN)/python bash tests/native/sanitize.sh

clean:
	rm -rf build dist $(VENV) *.egg-info cawa_fast/*.so
