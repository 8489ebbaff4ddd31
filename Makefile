# One command each, from a fresh clone; every target makes the environment that it needs in .venv.
#   make test      build, install the tests' packages, run the tests
#   make compare   build, then train one model under several strategies: table, out/compare.json, out/compare.png
#   make profile   build, then measure step time and memory into profiling/results/
#   make build     the environment and the compiled package alone
#   make lint      the style checks
#   make clean     take away all that was made
# PYTHON chooses the interpreter (3.11 or later); ARGS is handed to pytest or to cllm compare. The build's switches
# (CLLM_MARCH, CLLM_OPENMP, CLLM_DEBUG, CLLM_WERROR) come from the environment: see setup.py.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
SOURCES := setup.py pyproject.toml cllm/_kernels.pyx $(wildcard cllm/kernels/*.pxi)
PROFILES := speed memory

.PHONY: build test compare profile lint clean FORCE
.DEFAULT_GOAL := build

build: $(VENV)/built

test: $(VENV)/extra-test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

compare: $(VENV)/extra-plot
	mkdir -p out
	$(BIN)/python -m cllm compare --json out/compare.json --plot out/compare.png $(ARGS)

profile: $(VENV)/extra-plot $(VENV)/extra-profile
	set -e; for name in $(PROFILES); do $(BIN)/python profiling/$$name.py; done

lint: $(VENV)/extra-lint
	$(BIN)/ruff check .
	$(BIN)/cython-lint cllm

clean:
	rm -rf $(VENV) build dist out cllm.egg-info cllm/_build_info.py cllm/_kernels*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cllm needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Written anew only when a switch has changed, so that the build below follows it.
$(VENV)/switches: FORCE | $(BIN)/python
	@env | grep -E '^(CC|CFLAGS|LDFLAGS|CLLM_[A-Z]+)=' | sort > $@.now; \
		if cmp -s $@.now $@; then rm $@.now; else mv $@.now $@; fi

$(VENV)/built: $(SOURCES) $(VENV)/switches
	@echo "building cllm: about a minute"
	$(PIP) --editable .
	@touch $@

# The packages of one extra, without building cllm again.
$(VENV)/extra-%: $(VENV)/built
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print("\n".join(project["optional-dependencies"]["$*"]))' > $@.txt
	$(PIP) --requirement $@.txt
	@touch $@
