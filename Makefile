# One command each, from a fresh clone; every target makes the environment that it needs in .venv.
#   make test      build, install the tests' packages, run the tests
#   make laws      all tests, the laws over every family, strategy, cut of the batch and dtype, which make test tries in pairs,
#                  and longer cases of what it holds
#   make check-builds   build the kernels in other ways (clang, checked bounds, serial, sanitizers, levels, other registers and
#                  tuning) and compare bits, minutes each; ARGS="-k clang" is one of them
#   make compare   build, then train one model under several strategies: table, out/compare.json, out/compare.png
#   make profile   build, measure what README and docs show, into profiling/results/, draw every picture anew (what takes
#                  PyTorch or hours from the stored figures) and fill the pages; make profile-memory makes one part of it
#   make lab       every strategy at a row of limits on twelve thin layers, into out/lab; a killed run goes on
#   make regret    the planner against the best measured strategy of any kind on three workloads, a quarter of an hour each, into
#                  profiling/results; a killed run goes on
#   make peers PEER_PYTHON=PYTHON_WITH_TORCH   the comparisons with PyTorch
#   make experiments   what takes longer: the same at 4 x 1024, every strategy against its prediction, the variants
#   make build     the environment and the compiled package alone
#   make wheels    the wheel for all processors of this kind and the present Python, and the source distribution, into dist/,
#                  proved in an empty environment; ARGS="--beside sklearn torch" proves it in one process with these
#   make test-aarch64   the kernels cross-compiled for aarch64, their tests under qemu-user; needs Debian, root, minutes
#   make types     mypy --strict on a program of a user, stubs against the compiled module, whole signatures
#   make docs      the site with the reference into build/site, its links checked; nothing is fetched when it is read
#   make lint      the style checks
#   make clean     take away all that was made
# PYTHON chooses the interpreter (3.11 or later); ARGS is handed to pytest or to cllm compare. The build's switches
# (CLLM_MARCH, CLLM_OPENMP, CLLM_DEBUG, CLLM_WERROR) come from the environment: see setup.py.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
SOURCES := setup.py tools/toolchain.py pyproject.toml cllm/_kernels.pyx $(wildcard cllm/kernels/*.pxi)
PROFILES := compare memory speed overhead depth kernels predictions
PEER_PYTHON ?=
MEASURE := $(BIN)/python profiling
RESULTS := profiling/results
AGAINST = $(MEASURE)/compare.py --rounds 3 --together 7 --peer-python $(PEER_PYTHON)
OURS := cache,recompute,selective
LLAMA := --set vocab_size=256 --set n_layers=12 --set d_model=256 --set n_heads=8 --set n_kv_heads=2 --set d_ff=704 --set max_seq_len=256
PEERS := eager,checkpoint,micro:1,micro:2,micro:4,compile,compile:0.5,compile:0.1

.PHONY: build test laws check-builds wheels test-aarch64 types docs compare lab regret profile peers experiments lint clean FORCE $(addprefix profile-,$(PROFILES))
.DEFAULT_GOAL := build

build: $(VENV)/built

# With what the library reads and draws with where it is there, lest the tests of that are skipped.
test: $(addprefix $(VENV)/extra-,test mpi plot hf types)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

laws: $(VENV)/extra-test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --whole $(ARGS)

check-builds: $(VENV)/extra-test
	$(BIN)/python -m pytest --numprocesses 0 -m variants tests/test_variants.py $(ARGS)

# From the source distribution, so that it is proved as well.
wheels: $(VENV)/extra-wheels
	rm -rf build/wheels
	CLLM_MARCH=all CLLM_OPENMP=1 $(BIN)/python -m build --outdir build/wheels .
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python tools/repair_wheel.py build/wheels/*.whl dist
	cp build/wheels/*.tar.gz dist
	$(BIN)/python tools/check_wheel.py dist/*.whl $(ARGS)

test-aarch64: $(VENV)/extra-test
	tools/test_aarch64.sh $(BIN)/python $(ARGS)

compare: $(VENV)/extra-plot
	mkdir -p out
	$(BIN)/python -m cllm compare --json out/compare.json --plot out/compare.png $(ARGS)

lab: $(VENV)/extra-plot
	$(BIN)/python -m cllm lab --layers 12 --d-model 128 --heads 4 --d-ff 512 --batch-size 8 --seq-len 128 --rounds 3 --out out/lab $(ARGS)

REGRET = $(BIN)/python -m cllm lab --limits 8 --rounds 8 --steps 1 --slack 0.15 --minutes 14

regret: $(VENV)/extra-plot $(VENV)/extra-lab
	$(REGRET) --out out/regret-8x256 --json $(RESULTS)/regret-8x256.json $(ARGS)
	$(REGRET) --batch-size 4 --seq-len 1024 --out out/regret-4x1024 --json $(RESULTS)/regret-4x1024.json $(ARGS)
	$(REGRET) --model llama $(LLAMA) --batch-size 8 --seq-len 256 --out out/regret-llama --json $(RESULTS)/regret-llama.json $(ARGS)
	$(MEASURE)/draw.py
	$(MEASURE)/tables.py

# Each part takes one to two minutes, and is a target of its own. One after the other: measurements share the machine.
.NOTPARALLEL:

profile: $(addprefix profile-,$(PROFILES))
	$(MEASURE)/draw.py
	$(MEASURE)/tables.py

profile-compare: $(VENV)/extra-plot
	$(BIN)/python -m cllm compare --json $(RESULTS)/compare.json --plot $(RESULTS)/compare.png

profile-memory: $(VENV)/extra-plot $(VENV)/extra-profile
	$(MEASURE)/memory.py --strategies cache,recompute,every:2,selective,budget:450MB --draw cache,recompute --rounds 1 \
		--out $(RESULTS)/memory.json

profile-speed profile-overhead profile-depth: profile-%: $(VENV)/extra-plot
	$(MEASURE)/$*.py --out $(RESULTS)/$*.json

profile-kernels: $(VENV)/extra-plot
	$(MEASURE)/kernels.py --rounds 3 $(if $(PEER_PYTHON),--float64 --peer-python $(PEER_PYTHON)) --out $(RESULTS)/kernels.json

profile-predictions: $(VENV)/extra-plot
	$(MEASURE)/predictions.py --strategies cache,recompute,every:2,selective,cache@2 --budgets 5 --rounds 3 \
		--out $(RESULTS)/predictions.json

# Steps of PyTorch beside ours at five sizes, then a training run of some ten minutes each.
peers: $(VENV)/extra-plot
	@test -n "$(PEER_PYTHON)" || { echo "make peers needs PEER_PYTHON=, an interpreter that has PyTorch"; exit 1; }
	$(AGAINST) --peers $(PEERS) --strategies $(OURS),cache@2,budget:450MB --out $(RESULTS)/peers-8x256.json
	$(AGAINST) --batch-size 4 --seq-len 1024 --peers $(PEERS) --strategies $(OURS),cache@1,budget:600MB \
		--out $(RESULTS)/peers-4x1024.json
	$(AGAINST) --preset gpt2 --batch-size 1 --seq-len 1024 --together 5 \
		--peers eager,checkpoint,compile,compile:0.5,compile:0.1 --strategies $(OURS),budget:2400MB \
		--out $(RESULTS)/peers-gpt2-1x1024.json
	$(AGAINST) --preset gpt2 --batch-size 2 --seq-len 256 --together 5 --peers eager,compile --strategies cache \
		--out $(RESULTS)/peers-gpt2-2x256.json
	$(AGAINST) --preset tiny --batch-size 4 --seq-len 32 --rounds 15 --peers eager,compile --strategies cache \
		--out $(RESULTS)/peers-tiny.json
	$(MEASURE)/training.py --peer-python $(PEER_PYTHON) --out $(RESULTS)/training.json
	$(MEASURE)/draw.py
	$(MEASURE)/tables.py

experiments: $(VENV)/extra-plot $(VENV)/extra-profile
	mkdir -p out
	$(BIN)/python -m cllm compare --batch-size 4 --seq-len 1024 --steps 2 --strategies cache,recompute,selective \
		--json $(RESULTS)/compare-4x1024.json
	$(MEASURE)/predictions.py --budgets 8 --out $(RESULTS)/predictions.json
	$(MEASURE)/predictions.py --batch-size 4 --seq-len 1024 --rounds 5 --out $(RESULTS)/predictions-4x1024.json
	$(MEASURE)/overhead.py --preset small --batch-size 8 --seq-len 256 --strategies cache --rounds 15 \
		--out $(RESULTS)/overhead-small.json
	$(MEASURE)/compare.py --batch-size 4 --seq-len 1024 --strategies cache,spill:out --out $(RESULTS)/spill-4x1024.json
	$(BIN)/python -m cllm compare --strategies cache,bf16:selective,int8:selective,int8-stochastic:selective \
		--json $(RESULTS)/compare-inexact.json
	$(MEASURE)/compression.py --out $(RESULTS)/compression.json
	$(MEASURE)/leaks.py --out $(RESULTS)/leaks.json
	$(MEASURE)/planning.py --out $(RESULTS)/planning.json
	$(MEASURE)/crystalline.py --out $(RESULTS)/crystalline.json
	$(MEASURE)/tables.py

types: $(VENV)/extra-test $(VENV)/extra-types
	$(BIN)/python -m pytest --numprocesses 0 tests/test_types.py $(ARGS)

docs: $(VENV)/extra-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	$(BIN)/python tools/check_site.py build/site

lint: $(VENV)/extra-lint
	$(BIN)/ruff check .
	PATH=$(abspath $(BIN)):$$PATH cython-lint cllm
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

clean:
	rm -rf $(VENV) build dist out cllm.egg-info cllm/_build_info.py cllm/_kernels*.so cllm/levels
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
