# make setup      creates .venv: torch pinned, everything built and installed
# make check      style and types of Python and C++; half a minute
# make test       check, then the fast tests; at most six minutes on two cores
# make test-all   test, then all other tests: every instruction set, slow tests, builds, doctests; about twenty minutes
# make coverage   the fast tests, with a report of the lines that they run; six minutes
# make demo       trains with uniform and with adaptive weights and compares the two on a page; three minutes
# make bench      measures every operator against its baselines on this CPU and updates README.md; ten minutes
# make sanitize   runs the compiled code under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; twenty minutes
# make clean      removes .venv and everything that was built
# make help       prints this list

PYTHON ?= python3
# On a machine without an NVIDIA GPU a CPU build saves gigabytes: make setup TORCH=<its wheel>
TORCH  ?= torch==2.13.0
# Whether to build the CUDA operators (0, 1, auto). Default: if there is a GPU. The tests compile them if nvcc is installed.
CAWA_FAST_CUDA ?= $(if $(shell command -v nvidia-smi),auto,0)
# What the tests of adapters need beside the extras.
MMSEG  := mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 addict==2.4.0 termcolor yapf prettytable wcwidth ftfy
ONEDL  := onedl-mmsegmentation==1.4.2 onedl-mmengine==0.10.12
ULTRALYTICS := ultralytics==8.4.190 ultralytics-thop==2.2.3 polars==2.1.0
VENV   := .venv
BIN    := $(VENV)/bin
EPOCHS ?= 24
# Few images and few epochs need small batches, a higher learning rate than the paper's and less random scaling.
DEMO   := --resume --no-tables --epochs $(EPOCHS) --batch-size 4 --lr 0.05 --scale 0.75,1.5 --test-split test

.PHONY: help setup check test test-all coverage demo bench sanitize clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(VENV)/.done

# torch comes first: csrc/ compiles against it, and build isolation would download another one. torchvision comes without
# its dependencies: only the baselines in tests and benchmarks import it. Triton 3.6, the version of torch 2.11, is tested
# beside the newest. MMSegmentation, its fork, which has packages of the same names, and Ultralytics lie in folders of
# their own (75 MB), without what they would install: another OpenCV, among others. CAWA_FAST_PORTABLE also builds the code for processors other than x86-64, to test it here.
$(VENV)/.done: pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/* csrc/* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/python -m pip install --quiet "cmake>=3.25" ninja "pybind11>=2.13"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton-3.6 triton==3.6.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/mmseg $(MMSEG)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/onedl $(ONEDL)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/ultralytics $(ULTRALYTICS)
	CAWA_FAST_CUDA=$(CAWA_FAST_CUDA) CMAKE_ARGS="-DCAWA_FAST_PORTABLE=ON $(CMAKE_ARGS)" $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,models,test,dev,transformers,lightning,accelerate,monai,peft]"
	@$(BIN)/cawa-fast doctor
	@touch $@

# Both runs continue from where they stopped; `rm -r runs/demo` starts again.
demo: setup
	$(BIN)/cawa-fast train $(DEMO) --weighting uniform --run-dir runs/demo/uniform
	$(BIN)/cawa-fast train $(DEMO) --weighting balanced --run-dir runs/demo/balanced
	$(BIN)/cawa-fast report runs/demo/uniform runs/demo/balanced --out runs/demo/report.html

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu')
	$(BIN)/mypy

# Two processes with one thread each are faster than one process with two threads, because most tests are small.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --tier fast

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --tier rest --durations=30

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --tier fast --cov --cov-report=term

bench: setup
	$(BIN)/python -m bench cpu
	$(BIN)/python -m bench readme

sanitize: setup
	PYTHON=$(BIN)/python bash tests/native/sanitize.sh

clean:
	rm -rf build dist $(VENV) *.egg-info cawa_fast/*.so
