# What a contributor does here. `make help` lists it; every target installs what it needs and says what it does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
LAB := $(BIN)/python -m lab
# This clone, as the collection whose names the playbooks use. It is on the environment's path (dev-mode-dirs in
# pyproject.toml), so Ansible finds it from any directory and with any ansible.cfg.
COLLECTION := .ansible/collections/ansible_collections/minimax/metal
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.PHONY: help setup settings lab-setup demo test test-slow unit coverage mutation fuzz lint molecule bench catalog-audit engine-bump collection lab-up lab-down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .make/venv .make/compiled ## make the project's own virtual environment from the lock

.make/venv: requirements/controller.txt pyproject.toml
	@scripts/require-python "$(PYTHON)"
	@echo "setup: making $(VENV) from requirements/controller.txt"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes --requirement requirements/bootstrap.txt
	@$(BIN)/uv pip sync --quiet --compile-bytecode --only-binary :all: --require-hashes --python $(BIN)/python requirements/controller.txt
	@mkdir -p $(dir $(COLLECTION)) && ln -sfn ../../../.. $(COLLECTION)
	@$(BIN)/uv pip install --quiet --no-deps --no-index --no-build-isolation --python $(BIN)/python --editable .
	@mkdir -p .make && touch $@

# Byte code and the validated catalogue, both made again when a source changes: a plan then loads neither source
# text nor pydantic. Without it the plan is the same, and slower.
.make/compiled: .make/venv $(shell find src -name '*.py') $(wildcard src/minimax_metal/catalog/*.yml src/minimax_metal/catalog/locks/*.txt)
	@$(BIN)/python -m compileall -q src
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c 'from minimax_metal.catalog.load import keep_packaged; keep_packaged()'
	@touch $@

settings: setup ## write argument specifications, defaults and docs/settings.md from the declared settings
	@$(BIN)/python tools/settings.py

lab-setup: setup
	@scripts/install-system-packages lab/system-packages.txt

demo: lab-setup ## boot virtual GPU hosts, run site.yml on them, end with a verified reply
	@scripts/demo

test: ## lint, unit tests, hostile input, then site.yml on fresh lab hosts under molecule
	@scripts/stages lint unit fuzz molecule

lint: setup ## ansible-lint (production), yamllint, ruff, types
	@scripts/stages --only lint

unit: setup ## unit tests; those that need root or a program that is not here are skipped
	@scripts/stages --only unit

coverage: setup ## unit tests, with the lines of the package that they run
	@$(BIN)/pytest tests/unit --cov --cov-report=term:skip-covered --cov-report=html:reports/coverage

mutation: setup ## mutants of the decisions in plan/ that the tests miss: make mutation MUTANTS='minimax_metal.plan.removal*'
	@tools/mutation $(MUTANTS)

fuzz: setup ## hostile input for every reader of foreign text: make fuzz SECONDS=3600
	@$(BIN)/python -m tests.fuzz --seconds "$(or $(SECONDS),120)"

molecule: lab-setup ## the molecule scenario `default` on fresh lab hosts
	@scripts/stages --only molecule

test-slow: ## what CI does not carry: lab life cycle, engine arithmetic, drift, reboot
	@scripts/stages lab engine integration service accept weights share staging gateway rollout driver collection kernel

# The others want a running fleet: no_change.py an inventory, load.py an endpoint.
bench: lab-setup ## the benchmarks; each prints its figure
	@for name in plan_speed weights_speed weights_share bare_host staging rollout; do \
	  echo "== $$name"; $(BIN)/python "benchmarks/$$name.py"; \
	done

# AUDIT holds more: --drivers FILE, --pci-ids FILE, --hub URL, --config DIRECTORY, --json (docs/catalog-audit.md).
catalog-audit: setup ## compare the catalogue with its sources: make catalog-audit AUDIT="--hub URL"
	@$(BIN)/python tools/catalog_audit.py --lab-engine --index $(AUDIT)

engine-bump: setup ## add an SGLang release to the catalogue: make engine-bump VERSION=0.5.24
	@$(BIN)/python tools/engine_bump.py "$(VERSION)"

collection: setup ## build the Ansible collection minimax.metal into dist/
	@$(BIN)/ansible-galaxy collection build --force --output-path dist

lab-up: lab-setup ## boot the demo's hosts and leave them running
	@$(LAB) up

lab-down: setup ## stop the demo's hosts and leave nothing behind
	@$(LAB) down

clean: ## stop the labs of this machine, remove the environment and what was made here
	@if test -x $(BIN)/python; then $(LAB) down; $(LAB) --name molecule down; fi
	@rm -rf $(VENV) .make dist reports mutants .ansible .pytest_cache .mypy_cache .ruff_cache .hypothesis
