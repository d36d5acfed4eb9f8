# make demo, make check and make test set up .venv on a fresh machine, which needs make and Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

# The supported minors, each by name in the README; make compile-all TRITON=3.8 takes one of them.
TRITON := 3.6 3.7 3.8 3.9

.PHONY: demo check test lint compile-all bench gpu

demo: .venv/installed  ## train CCNet on the embedded data set, two to six minutes on two cores
	$(BIN)/python train.py

# Processes of one thread each: small networks do not get faster with more threads.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal

check: lint  ## what to run before a commit, under two minutes on two cores
	$(PYTEST) -n 2 -m "not slow"

# One process more than two cores, because many tests wait for other processes.
test: lint  ## everything that must hold, without a GPU or a data set
	$(PYTEST) -n 3

# pyrefly resolves `ccnet` through a link of this name, whatever the checkout is called.
lint: .venv/installed  ## ruff and pyrefly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .venv/types && ln -sfn ../.. .venv/types/ccnet
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --output-format min-text

compile-all: .venv/installed $(TRITON:%=build/triton-%/installed)  ## every launch that ships, with every supported Triton; no GPU
	@failed=; for minor in $(TRITON); do \
	  PYTHONPATH=build/triton-$$minor $(BIN)/python -m ccnet.kernels.launches.launch_set || failed="$$failed $$minor"; \
	done; test -z "$$failed" || { echo "failed with triton$$failed"; exit 1; }

build/triton-%/installed:
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) 'triton==$*.*'
	touch $@

bench: .venv/installed  ## the attention operator beside its alternatives
	$(BIN)/python benchmark.py

# For example OPTIONS='output=/tmp/gpu gpu.steps=[compile,tests] gpu.minutes=9'; see docs/kernels.md.
OPTIONS ?= output=results/gpu

gpu:  ## everything that results/ calls "not measured", on an NVIDIA GPU; BIN=/usr/bin takes another Python
	@mkdir -p build/root && ln -sfn ../.. build/root/ccnet
	PYTHONPATH=$(CURDIR)/build/root:$$PYTHONPATH $(BIN)/python3 benchmark.py mode=gpu $(OPTIONS)

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
