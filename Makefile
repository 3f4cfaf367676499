# Each target does all the set-up it needs: an environment in .venv, torch, tools, the build.
#
#   make PYTHON=python3.12 TORCH="torch==2.11.0" test     another Python, another torch
#   make VENV= bench        the Python in hand with the torch it has; installs nothing
#   make bench BENCH_FLAGS="--dtype bfloat16"             likewise TEST_FLAGS, TRACE_FLAGS
#   FLASHINT8_CUDA=0|1, TORCH_CUDA_ARCH_LIST, MAX_JOBS are passed on to setup.py

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

# For the card found here; a package (pip) is built for the default list.
export TORCH_CUDA_ARCH_LIST ?= native
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
else
PY := $(VENV)/bin/python
endif

SOURCES := flashint8 tests benchmarks profiler scripts examples setup.py

.PHONY: build bench test trace plots lint format sanitize clean distclean env help

build: env
	@$(PY) setup.py -q build_ext --inplace
ifneq ($(strip $(VENV)),)
	@sh scripts/setup_env.sh link "$(VENV)"
endif

env:
ifneq ($(strip $(VENV)),)
	@sh scripts/setup_env.sh create "$(VENV)" "$(PYTHON)" "$(TORCH)"
endif

bench: build
	@$(PY) benchmarks/attention_bench.py $(BENCH_FLAGS)

test: build
	@$(PY) -m pytest $(TEST_FLAGS)

trace: build
	@$(PY) profiler/profile_block.py $(TRACE_FLAGS)

plots: env
	@$(PY) benchmarks/plots.py $(PLOT_FLAGS)

lint: env
	@PY="$(PY)" sh scripts/lint.sh

format: env
	@PY="$(PY)" sh scripts/lint.sh --fix

# The CPU kernels and the op library under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: env
	@PY="$(PY)" sh scripts/run_sanitized.sh $(TEST_FLAGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f flashint8/*.so flashint8/*.new
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv

help:
	@echo "make           build in place, for the GPU found here"
	@echo "make bench     the attention table -> results/attention.json"
	@echo "make test      the test suite"
	@echo "make trace     profile a transformer block -> profiler/mini_block_trace.json"
	@echo "make plots     figures and tables from the JSON files"
	@echo "make lint      every check of style and structure; make format repairs what it can"
	@echo "make sanitize  CPU tests under ASan and UBSan"
	@echo "make clean     remove what was built; make distclean the environment too"
	@sed -n '2,7s/^# \{0,1\}//p' Makefile
