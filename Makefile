# make demo       set up .venv if needed, then decode held-out puzzles live in the terminal
# make test       set up .venv if needed, then check style and run every test not marked slow
# make test-full  type checks and the slow tests too
# make sanitize   the op tests with the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# make gpu-free   what checks GPU kernels without a GPU, all of it in `make test` and each part a target of its own:
#                 gpu-free-triton (numbers, Triton's interpreter), gpu-free-cuda (numbers, CUDA kernels on the CPU),
#                 gpu-free-machine-code (registers, spills, instructions), gpu-free-bytes (memory traffic, launches)
# make bench      measure the small set of benchmarks (ten minutes on two cores) and write docs/benchmarks.md and its
#                 pictures; with BENCH=--full the whole matrix (hours)
# make gpu-check  on a machine with a GPU: build the CUDA kernels, check both GPU backends, measure them (eight minutes)
# make learning   the training runs behind docs/learning.md, then the page and its pictures. 104 runs of two to four
#                 minutes of one core each, five hours of a core in all, WORKERS at a time (2); stopped, it goes on next time
# make build | lint | clean
#
# PYTHON=python3.12 chooses the interpreter of a new .venv. On Linux, PyPI's torch is the CUDA build (gigabytes); for the
# CPU build set PIP_EXTRA_INDEX_URL to the address of PyTorch's CPU packages, which its installation page names.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Installed without their dependencies: packages with masked LMs inside that others trained, used as data, and TRL, whose
# reward functions must work unchanged.
TEST_ALONE := sapiens==1.0.5 rxnmapper==0.4.3 trl==1.16.0
TORCH := $(shell grep '^torch==' constraints.txt)
NATIVE := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh csrc/*/*/*.cpp csrc/*/*/*.h)
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
# Two test processes with one thread each: a pool per core in each would fight over the cores. Tests of threading set
# the number of threads themselves.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: build demo test test-full style lint sanitize clean bench report gpu-check learning
.PHONY: gpu-free gpu-free-triton gpu-free-cuda gpu-free-machine-code gpu-free-bytes
.DELETE_ON_ERROR:

build: build/.compiled

demo: build/.compiled
	$(BIN)/mdlm-fast demo

test: style build/.shim
	$(PYTEST) -q -m "not slow"
	$(BIN)/python -m pytest -q --benchmark-disable bench
	$(INTERPRETED) -m "not slow" $(TRITON_NUMBERS)
	$(ON_SHIM) -m "not slow" $(CUDA_NUMBERS)

test-full: lint build/.shim
	$(PYTEST) -q
	$(INTERPRETED) $(TRITON_NUMBERS)
	$(ON_SHIM) $(CUDA_NUMBERS)

# Triton chooses between its interpreter and its compiler when it is imported, hence processes of their own.
INTERPRETED := TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 $(PYTEST) -q -k triton
TRITON_NUMBERS := tests/parity/test_parity.py
# The CUDA kernels, unchanged, on the CPU (tests/gpu_free/shim/README.md).
SHIM := build/shim/libmdlm_fast_shim.so
ON_SHIM := MDLM_FAST_SHIM_LIBRARY=$(SHIM) $(PYTEST) -q -k shim
CUDA_NUMBERS := tests/parity/test_parity.py

gpu-free: gpu-free-triton gpu-free-cuda gpu-free-machine-code gpu-free-bytes

gpu-free-triton: style
	$(INTERPRETED) -m "not slow" $(TRITON_NUMBERS)
	$(PYTEST) -q tests/gpu_free/test_philox.py

gpu-free-cuda: style build/.shim
	$(ON_SHIM) -m "not slow" $(CUDA_NUMBERS)
	$(PYTEST) -q -m "not slow" tests/gpu_free/test_shim.py tests/gpu_free/test_shim_kernels.py

gpu-free-machine-code: style
	$(PYTEST) -q -m "not slow" tests/gpu_free/machine_code tests/gpu_free/test_machine_code.py

gpu-free-bytes: style build/.shim
	$(PYTEST) -q -m "not slow" tests/gpu_free/test_bytes.py

# Needs torch, Triton and nvcc alone; GPU_CHECK takes options, e.g. GPU_CHECK=--quick.
gpu-check:
	$(GPU_PYTHON) -m bench.gpu_check $(GPU_CHECK)

bench: build/.compiled $(VENV)/.tests-installed
	$(BIN)/mdlm-fast bench --output docs/benchmarks.json $(BENCH)
	$(MAKE) report

# The pages that hold measured numbers, from the committed results.
report: build/.compiled
	$(BIN)/mdlm-fast report docs/benchmarks.json --output docs/benchmarks --markdown docs/benchmarks.md
	$(BIN)/python -m bench.report.figures

WORKERS ?= 2
learning: build/.compiled
	$(BIN)/python -m bench.learning run --all --workers $(WORKERS)
	$(BIN)/python -m bench.learning report

build/.shim: $(VENV)/.tests-installed $(NATIVE) $(wildcard tests/gpu_free/shim/*) tests/gpu_free/build_shim.py
	@mkdir -p build
	@echo "Compiling the CUDA kernels for the CPU ..."
	@$(BIN)/python tests/gpu_free/build_shim.py > build/shim.log 2>&1 || { cat build/shim.log; exit 1; }
	@touch $@

style: build/.compiled $(VENV)/.tests-installed
	$(BIN)/ruff check .

# Half a minute of processor time without its cache, so not part of `make test`.
lint: style
	$(BIN)/mypy

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "mdlm-fast needs Python 3.10 or later; choose one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment." \
	    "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

# torch first, at the pinned version: an index may hold a CPU build of that version alone, and whatever depends on an
# absent torch would pull the newest one, with CUDA.
$(VENV)/.torch: $(VENV)/.created
	@echo "Installing $(TORCH) into $(VENV) ..."
	@$(BIN)/pip install -q -c constraints.txt "$(TORCH)" setuptools wheel ninja
	@touch $@

# Pure Python here; the extension is compiled below, incrementally.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py constraints.txt
	@echo "Installing mdlm-fast ..."
	@MDLM_FAST_BUILD=skip $(BIN)/pip install -q -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.tests-installed: $(VENV)/.installed Makefile
	@echo "Installing what the tests need ..."
	@MDLM_FAST_BUILD=skip $(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[test]"
	@$(BIN)/pip install -q --no-deps $(TEST_ALONE)
	@touch $@

build/.compiled: $(VENV)/.installed $(NATIVE)
	@mkdir -p build
	@echo "Compiling the kernels (a minute or two the first time; log in build/compile.log) ..."
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py -q build_ext --inplace > build/compile.log 2>&1 || \
	  { cat build/compile.log; exit 1; }
	@grep '^mdlm-fast: ' build/compile.log || true
	@touch $@

# A second build of the whole package in build/sanitize, found before the checkout through PYTHONPATH. Python is not
# instrumented, so the runtime is preloaded (with libstdc++, whose exceptions it must intercept from the start), and
# Python's own leaks are not looked for.
SANITIZE_LIB := $(abspath build/sanitize/lib)
sanitize: build/.compiled $(VENV)/.tests-installed
	@echo "Compiling the kernels with sanitizers (log in build/sanitize.log) ..."
	@PATH="$(abspath $(BIN)):$$PATH" MDLM_FAST_BUILD=require MDLM_FAST_CUDA_ARCHS=80 MDLM_FAST_SANITIZE=address,undefined \
	  $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib $(SANITIZE_LIB) \
	  --build-temp build/sanitize/objects > build/sanitize.log 2>&1 || { cat build/sanitize.log; exit 1; }
	cd build && PYTHONPATH=$(SANITIZE_LIB) $(abspath $(BIN))/python -c 'import mdlm_fast; assert mdlm_fast.__file__.startswith("$(SANITIZE_LIB)")'
	PYTHONPATH=$(SANITIZE_LIB) MDLM_FAST_BACKEND=cpp OMP_NUM_THREADS=2 \
	  LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(BIN)/pytest -q -m "not slow" -k "not compile and not opcheck" tests/ops

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis mdlm_fast/*.so
	find mdlm_fast kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
