# Every habit is one command. `.venv` is made once, and again only when the list of dependencies changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
FOLDERS := cli gr_model tokenizers data_pipeline cvae_head wbc benchmarks
RUN ?= runs/demo
VERSIONS ?=
JOBS ?= 2

.PHONY: help demo test check format reproduce ship images bench golden nightly smoke docs site clean venv

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

venv: $(VENV)/.ready  ## make the virtual environment

$(VENV)/.ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null || { \
	  echo "development needs Python 3.10 or 3.11, for the simulator (pybullet has no wheels for newer ones);" \
	       "'$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Install python3.11, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: venv  ## the whole chain at laptop size, then the report in $(RUN)
	$(BIN)/gr2 demo --out $(RUN)

test: venv  ## the tests (without the nightly ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not nightly" -n $(JOBS)

check: venv  ## formatting, lint, types
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	@mkdir -p .mypy_cache/parent && ln -sfn $(CURDIR) .mypy_cache/parent/gr2  # mypy must see the root as the package
	@cd .mypy_cache/parent && $(CURDIR)/$(BIN)/python -m mypy --config-file gr2/setup.cfg --cache-dir .. \
	  $(addprefix gr2/,$(wildcard tests/smoke.py *.py $(addsuffix /*.py,$(FOLDERS)) $(addsuffix /*/*.py,$(FOLDERS))))

format: venv  ## rewrite the formatting, fix what lint can fix
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: venv  ## rewrite the list of modules in docs/architecture.md
	$(BIN)/python docs/file_map.py

site: venv  ## the documents as a site with search and reference, in build/site
	$(BIN)/python -m pip install --quiet --editable '.[site]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

reproduce: venv  ## the reference run of docs/results.md, with its report, in runs/reproduce
	$(BIN)/gr2 demo --preset reference --out runs/reproduce

ship: venv  ## put the encoders and the policy of the reference run into the package
	$(BIN)/python docs/ship.py runs/reproduce

images: venv  ## the images of the README, from the reference run and the shipped policy
	$(BIN)/python docs/images.py runs/reproduce

bench: venv  ## what each piece of a control cycle costs on this machine
	OMP_NUM_THREADS=1 $(BIN)/gr2 benchmark speed

golden: venv  ## train tests/golden/tiny_loss.txt anew and print what changed
	OMP_NUM_THREADS=1 $(BIN)/python tests/test_golden_curve.py

nightly: venv  ## the long tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly

smoke: venv  ## the built wheel in miniature with each Python it promises (VERSIONS="3.10 3.12": 90 s, 6 GB each)
	$(BIN)/python tests/smoke.py $(VERSIONS)

clean:  ## remove build products (not .venv, not runs)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
