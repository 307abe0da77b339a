# `make demo` shows the gateway on the demo frontier; `make test` installs the rest and runs the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Exactly the files that were tested; nothing is resolved. The project itself comes without dependencies then.
LOCKS := deploy/locks
LOCKED := $(PIP) --no-deps --require-hashes --requirement
PROJECT := $(PIP) --no-deps --editable .
# A plain `torch` brings gigabytes of CUDA packages: the version is pinned where it is installed.
TORCH ?= torch==2.13.0
# What resolves the locks, in an environment of its own.
UV ?= uv==0.13.9
JOBS ?= 2

.PHONY: help demo test check lock audit format bench bench-models bench-serving bench-monitoring peers soak wire clean system
.DEFAULT_GOAL := help

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serving: pyproject.toml $(LOCKS)/loadtest.txt | $(BIN)/python
	$(LOCKED) $(LOCKS)/loadtest.txt
	$(PROJECT)
	@touch $@

$(VENV)/.dev: pyproject.toml $(LOCKS)/dev.txt | $(BIN)/python
	$(LOCKED) $(LOCKS)/dev.txt
	$(PIP) '$(TORCH)'  # what its build for CPUs needs is there already
	$(PROJECT)
	$(BIN)/python -m pip check
	@touch $@ $(VENV)/.serving

.venv-triton/.ready: tests/e2e/make_triton_env.sh
	PYTHON=$(PYTHON) bash tests/e2e/make_triton_env.sh .venv-triton
	@touch $@

system: ## Install promtool, Chromium and ffmpeg for their tests (Debian; skipped where it cannot be)
	@bash tests/install_system.sh

demo: $(VENV)/.serving ## Render frames, start the gateway on the demo frontier, send load (EXIT=1 ends it)
	$(BIN)/python -m loadtest demo $(if $(EXIT),--exit)

test: $(VENV)/.dev .venv-triton/.ready system ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q

check: $(VENV)/.dev ## Lint, types, layers, locks; an audit where its service can be reached
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m deploy.lock
	$(BIN)/python -m deploy.audit

audit: $(VENV)/.dev ## Look for known vulnerabilities in the locks; no answer is an error here
	$(BIN)/python -m deploy.audit --must

lock: ## Resolve the locks again; pins stay where they can, UPGRADE=1 takes the newest
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check '$(UV)'
	UV=.venv-lock/bin/uv bash $(LOCKS)/resolve.sh $(if $(UPGRADE),--upgrade)

format: $(VENV)/.dev ## Format the code and mend what lint can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wire: $(VENV)/.dev ## Make the gRPC stubs again from their .proto files
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. router/wire/*.proto

bench: bench-models bench-serving bench-monitoring ## Measure every claim on the demo frontier, in three parts

bench-models: $(VENV)/.dev build/conveyor/.rendered build/calibrated/.rendered build/pool/.rendered build/apart/.rendered ## Claims about models and routing
	$(BIN)/python -m search bench difficulty --repo model_repo --data build/conveyor
	$(BIN)/python -m search bench cascade --repo model_repo --data build/conveyor
	$(BIN)/python -m search bench routing --repo model_repo --data build/calibrated --pool build/pool
	$(BIN)/python -m search bench scales --data build/apart --out build/scales
	$(BIN)/python -m search bench drift --repo model_repo --data build/conveyor

bench-serving: $(VENV)/.dev build/conveyor/.rendered ## Claims about the gateway under load, on two cores (40 minutes)
	$(BIN)/python -m loadtest bench generator
	$(BIN)/python -m loadtest bench stall
	$(BIN)/python -m loadtest bench overhead --repo model_repo --frames build/conveyor/test
	$(BIN)/python -m loadtest bench budgets --repo model_repo --frames build/conveyor/test
	$(BIN)/python -m loadtest bench stream --repo model_repo --frames build/conveyor/test
	$(BIN)/python -m loadtest bench overload --repo model_repo --frames build/conveyor/test
	$(BIN)/python -m loadtest bench adaptation --repo model_repo --frames build/conveyor/test
	$(BIN)/python -m loadtest bench republish --repo model_repo --frames build/conveyor/test

bench-monitoring: $(VENV)/.dev .venv-triton/.ready system build/conveyor/.rendered ## Claims about alerts and the board (14 minutes)
	$(BIN)/python -m deploy.bench_monitoring --repo model_repo --frames build/conveyor/test

peers: $(VENV)/.dev build/conveyor/.rendered ## The gateway beside other servers, on two cores (25 minutes, and 5 to install them)
	$(BIN)/python -m loadtest peers --repo model_repo --frames build/conveyor/test \
		--json build/peers/peers.json --markdown build/peers/peers.md --report build/peers/peers.html

soak: $(VENV)/.dev build/conveyor/.rendered ## Load the gateway for 20 minutes and look for leaks
	$(BIN)/python -m loadtest bench soak --repo model_repo --frames build/conveyor/test

build/conveyor/.rendered: $(VENV)/.dev
	$(BIN)/python -m search render --out build/conveyor --frames train=8,calib=8,valid=8,test=800 --seed 7
	touch $@

build/calibrated/.rendered: $(VENV)/.dev
	$(BIN)/python -m search render --out build/calibrated --frames calib=9000,test=800 --seed 7
	touch $@

build/apart/.rendered: $(VENV)/.dev
	$(BIN)/python -m search render --out build/apart --frames train=3000,calib=1500,test=800 --seed 7
	touch $@

build/pool/.rendered: $(VENV)/.dev
	$(BIN)/python -m search render --out build/pool --frames test=20000 --seed 101
	touch $@

clean: ## Remove what was built
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
