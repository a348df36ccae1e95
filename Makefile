# Set-up, demonstration and tests. `make demo` and `make test` need Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK   := $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
          --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# Every target starts many processes: each finds its modules compiled, although the surroundings keep Python from that.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint format kill9 converge sim mutants fuzz chaos bench lock clean

demo: $(VENV)/.installed ## three real sites, a real tree, a kill -9, a comparison (under 90 s)
	$(BIN)/claudefs-repl demo

test: $(VENV)/.developed lint ## lint, strict types and tests
	$(BIN)/python -m pytest -q -n 3 -m "not long"

lint: $(VENV)/.developed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.developed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

kill9: $(VENV)/.developed ## 50 times kill -9 in the middle of a put: nothing acknowledged is lost
	$(BIN)/python -m pytest -q -p no:randomly tests/cluster/test_kill9.py -m long

converge: $(VENV)/.developed ## a million random operations at two to four sites, against the model (half an hour)
	CLAUDEFS_REPL_OPERATIONS=1000000 $(BIN)/python -m pytest -q -n 2 tests/nodes/store/test_converge.py

sim: $(VENV)/.developed ## seeded runs of whole clusters, broken on purpose (SEEDS=n, SEED=the first)
	$(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--first $(SEED))

mutants: $(VENV)/.developed ## plants known bugs one by one: the simulation notices each (SEEDS=n: the most seeds for one)
	$(BIN)/python -m tests.simulation.mutants.run $(if $(SEEDS),--seeds $(SEEDS))

fuzz: $(VENV)/.developed ## every decoder against mutated inputs (MINUTES=5 or RUNS=n for each, SEED=n, TARGET=name; REPLAY=file)
	$(BIN)/python -m tests.fuzz $(if $(RUNS),--runs $(RUNS),--minutes $(or $(MINUTES),5)) $(if $(SEED),--seed $(SEED)) \
		$(if $(TARGET),--target $(TARGET)) $(if $(REPLAY),--replay $(REPLAY))

bench: $(VENV)/.installed ## the figures of the README, measured here
	$(BIN)/claudefs-repl bench

chaos: $(VENV)/.installed ## break real sites on purpose, a dozen short scenarios, and judge the promises (under 5 minutes)
	$(BIN)/claudefs-repl chaos --short

lock: $(VENV)/.developed ## write the lock files anew from pyproject.toml
	$(LOCK) --build-deps-for editable -o requirements.txt pyproject.toml
	$(LOCK) --extra dev -o requirements-dev.txt pyproject.toml

clean: ## remove what set-up and tests made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "claudefs-repl needs Python 3.11 or later; choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt pyproject.toml
	$(PIP) --require-hashes -r requirements.txt
	$(PIP) --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.developed: $(VENV)/.installed requirements-dev.txt
	$(PIP) --require-hashes -r requirements-dev.txt
	touch $@
