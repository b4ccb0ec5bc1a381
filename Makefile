# make env | native | demo | test | check | bench | proto.  Needs python3 (3.11 or newer), its venv module, make and a package
# registry. PYTHON=... picks the interpreter. Where no GPU is wanted, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# spares the download of the CUDA libraries.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
OLDEST_GRPC := $(VENV)/oldest-grpc

.PHONY: env native demo test check bench proto clean

env: $(VENV)/.stamp native $(OLDEST_GRPC)/.stamp

# What is installed follows these two files and nothing else; an interrupted run leaves no stamp. Bytecode is made
# afterwards, on all cores (pip takes one); some packages hold files that do not compile, which nobody imports.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; set PYTHON=/path/to/python3" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --editable '.[dev,ray]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# The engine's kernels for this machine: looked at every time, built where they are missing or damaged. Without a C++
# compiler it says so, and the engine runs slower.
native: $(VENV)/.stamp
	@$(BIN)/python -m engine.native || true

# The oldest gRPC that pyproject.toml allows, kept apart: stubs are generated with it and tested on it.
# The test on it is skipped where no wheel of it exists (a newer Python), so a failure here stops nothing.
$(OLDEST_GRPC)/.stamp: $(VENV)/.stamp
	@rm -rf $(OLDEST_GRPC)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --only-binary :all: --target $(OLDEST_GRPC) \
		grpcio-tools==1.71.0 grpcio==1.71.0 protobuf==5.29.1 googleapis-common-protos==1.66.0 \
		&& touch $@ || { rm -rf $(OLDEST_GRPC); echo "make: the oldest grpcio-tools cannot be installed here" >&2; }

demo: env
	$(BIN)/pdserve demo

# Clusters are started by one of these processes, one after another; others run the rest (tests/conftest.py).
TEST_PROCESSES ?= 2

test: env
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: env
	$(BIN)/python -m bench

proto: env
	$(BIN)/python -m deploy.proto_stubs

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
