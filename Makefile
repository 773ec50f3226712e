# Every target sets up what it needs. `make` alone prints this help.
.DEFAULT_GOAL := help
.PHONY: help setup sweep reproduce smoke ui test test-fast test-flower check docs format bench soak mutants lock clean

PYTHON ?= python3
SWEEP ?= default
EXPERIMENT ?=
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv-bench/.installed
FLOWER ?= 1.41
OTHER := .venv-flower-$(FLOWER)

help: ## print this help
	@echo "fedsweep: sweeps of (clustered) federated-learning experiments"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "variables: SWEEP=name (a file of configs/sweep), ARGS='key=value axis=a,b --dry-run', PYTHON=python3.12"

setup: $(STAMP) ## make .venv as requirements.lock says (other targets do it when the lock changed)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else \
		f"fedsweep needs Python 3.11 to 3.14, but $(PYTHON) is {v[0]}.{v[1]}; use make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

sweep: $(STAMP) ## run a sweep: make sweep SWEEP=mnist_cifar10 ARGS="data.root=DATA seed=0,1"
	@$(BIN)/fedsweep sweep $(SWEEP) $(ARGS)

reproduce: $(STAMP) ## hold an experiment against its paper: make reproduce EXPERIMENT=cfl ARGS="--full data.root=DATA"
	@$(BIN)/fedsweep reproduce $(EXPERIMENT) $(ARGS)

smoke: $(STAMP) ## two clients through every stage on Ray, and check what was logged
	@$(BIN)/python -m tests.smoke.run

ui: $(STAMP) ## MLflow's UI on the local store, on 127.0.0.1:5000
	@$(BIN)/fedsweep ui $(ARGS)

test: $(STAMP) ## the test suite, in two processes: make test ARGS="-n 0 tests/unit" for one
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-fast: $(STAMP) ## those of the unit, contract and golden tests that last took an instant: for daily work
	@$(BIN)/python -m pytest -n 2 --dist loadfile --fast tests/unit tests/contract tests/golden $(ARGS)

test-flower: $(OTHER)/.installed ## the contract tests on another Flower: make test-flower FLOWER=1.41
	@$(OTHER)/bin/python -c 'import flwr.supercore.version as v; print("Flower", v.package_version)'
	@$(OTHER)/bin/python -m pytest -n 2 --dist loadfile tests/contract $(ARGS)

# What the lock says of everything else, but for what a release of Flower pins itself.
$(OTHER)/.installed: pyproject.toml requirements.lock $(STAMP)
	$(BIN)/python -m uv venv --quiet --clear --python $(BIN)/python $(OTHER)
	grep -vE '^(flwr|uv|certifi)==' requirements.lock > $(OTHER)/constraints.txt
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(OTHER)/bin/python \
		--constraint $(OTHER)/constraints.txt --group dev --editable . 'flwr[simulation]==$(FLOWER).*'
	@touch $(OTHER)/.installed

check: $(STAMP) ## lint, format, types, arrows between rooms, dependencies, links of the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python runner/places.py .venv/laid-out
	@MYPYPATH=.venv/laid-out $(BIN)/mypy
	@PYTHONPATH=.venv/laid-out $(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/deptry --no-ansi .
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(STAMP) ## the docs as a site, in outputs/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo outputs/docs/index.html

bench: $(STAMP) $(PEERS) ## benchmarks against peers: make bench ARGS="lenet_vs_flower"; one table and bench.json
	@$(BIN)/python -m benchmarks $(ARGS)

soak: $(STAMP) ## kill a sweep's processes for hours, and compare: make soak ARGS="--kills 1000"
	@$(BIN)/python -m benchmarks.soak $(ARGS)

mutants: $(STAMP) ## one-line faults, and which tests notice: make mutants ARGS="--count 20 --jobs 2"
	@$(BIN)/python -m benchmarks.mutants $(ARGS)

$(PEERS): pyproject.toml requirements.lock $(STAMP)
	$(BIN)/python -m uv venv --quiet --clear --python $(BIN)/python .venv-bench
	grep -E '^(torch|numpy)==' requirements.lock > .venv-bench/constraints.txt
	$(BIN)/python -m uv pip install --quiet --python .venv-bench/bin/python --group bench \
		--constraint .venv-bench/constraints.txt
	$(BIN)/python -m uv pip install --quiet --python .venv-bench/bin/python --no-deps --group bench-alone --editable .
	@touch $(PEERS)

format: $(STAMP) ## mend lint and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(STAMP) ## pin anew what pyproject.toml asks for, for Python 3.11 to 3.14
	$(BIN)/python -m uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-header --no-annotate \
		--group dev pyproject.toml --output-file requirements.lock

clean: ## remove the environment and all results of this folder
	rm -rf .venv .venv-bench .venv-flower-* outputs .pytest_cache .mypy_cache .ruff_cache
