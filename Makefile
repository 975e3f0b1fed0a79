# Springhouse: set-up, demo, tests, benchmarks. Every target installs what it needs and says what it does.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# One build of the dependencies for everything, outside the clone.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/springhouse/target
VENV := $(HOME)/.cache/springhouse/venv
export SPRINGHOUSE_PYTHON := $(VENV)/bin/python
# The same packages and features every time, so that cargo never builds a dependency twice.
BUILD := cargo build --workspace --all-targets
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: bench bench-scale fuzz
.PHONY: help setup venv build demo demo-stay test lint fmt clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## Install what the build needs: libclang and a C++ compiler for RocksDB
	@command -v cargo > /dev/null || { echo "Rust is missing: install it from https://rustup.rs"; exit 1; }
	@need=; \
	find /usr/lib /usr/local/lib -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' 2> /dev/null | grep -q . \
	  || need="$$need libclang-dev"; \
	command -v c++ > /dev/null || need="$$need g++"; \
	if [ -n "$$need" ]; then \
	  if command -v apt-get > /dev/null; then \
	    echo "Installing$$need (RocksDB is built from its C++ sources)"; \
	    $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $$need > /dev/null; \
	  else echo "Please install:$$need"; exit 1; fi; \
	fi

venv: $(VENV)/.ready
$(VENV)/.ready: integration/clients/requirements.txt
	@command -v python3 > /dev/null || { echo "python3 is missing: the tests run foreign clients written in it"; exit 1; }
	@echo "Preparing a Python environment in $(VENV): DuckDB, Polars, pyarrow, tritonclient, moto"
	@python3 -m venv $(VENV) || { \
	  echo "Installing python3-venv"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv > /dev/null; \
	  python3 -m venv $(VENV); }
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r integration/clients/requirements.txt
	@touch $@

build: setup ## Build everything (the first time 45 minutes on two cores, most of it RocksDB)
	@$(BUILD)

demo: build ## The whole chain on every flight out of New York in 2013
	@$(CARGO_TARGET_DIR)/debug/springhouse demo

demo-stay: build ## The same, and leave the servers up
	@$(CARGO_TARGET_DIR)/debug/springhouse demo --stay

test: build venv ## All tests, those with real servers and foreign clients included
	@if cargo nextest --version > /dev/null 2>&1; then cargo nextest run --workspace --no-fail-fast; \
	else cargo test --workspace --no-fail-fast; fi

fuzz: build ## Mutate what comes from outside or from disk, for FOR seconds (600) from SEED (the time)
	@seed=$${SEED:-$$(date +%s)}; for=$${FOR:-600}; echo "seed $$seed, $$for seconds: SEED=$$seed make fuzz does the same again"; \
	SPRINGHOUSE_FUZZ_SEED=$$seed SPRINGHOUSE_FUZZ_SECONDS=$$for cargo test --workspace --test integration -- fuzz::

bench: build venv ## Measure: every figure as a ratio taken in the same run (PART=lookups, direct, entity, predictions, jobs, skewed, security, outage, switching, pushes or following)
	@$(CARGO_TARGET_DIR)/debug/springhouse-bench $(PART)

bench-scale: build venv ## Measure with 20 to 50 million events against DuckDB, Polars and DataFusion: 8 to 15 minutes (PART=refresh, growth, backfill, windows or latest)
	@$(SPRINGHOUSE_PYTHON) benches/scale.py $(CARGO_TARGET_DIR)/debug/springhouse $(PART)

lint: setup ## Clippy, with the laws of clippy.toml
	@cargo clippy --workspace --all-targets -- -D warnings

fmt: ## Format
	@cargo fmt --all

clean: ## Remove what was built
	@cargo clean
