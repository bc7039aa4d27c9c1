# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip, with what it does in one line of the terminal.
PIP = $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt --editable
ONE_LINE = | awk -v tty=$$(test -t 1 && echo 1) '/^(Collecting|Downloading|Installing|Building)/ { \
  if (tty) { printf "\r\033[K%.78s", $$0; fflush() } } END { if (tty) printf "\r\033[K" }'
SHELL := /bin/bash -o pipefail
UNIT := $(BIN)/pytest -m 'not stress' --doctest-modules replaylab tests tools
BENCHMARKS := write read importing features replay seek sweep rules ml realism chart optimise

.PHONY: help demo test lab bench stress format lint types unit notebooks docs browser clean sample

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"replaylab needs Python 3.11 or later, found {v[0]}.{v[1]}. Name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing replaylab and the packages it needs'
	@$(PIP) . $(ONE_LINE)
	@touch $@

$(VENV)/develop: $(VENV)/runtime
	@echo 'Installing what the tests need'
	@$(PIP) '.[dev]' $(ONE_LINE)
	@touch $@

demo: $(VENV)/runtime ## the main job from end to end on the sample data
	$(BIN)/replaylab warm-up
	$(BIN)/replaylab demo

test: $(VENV)/develop browser lint types unit notebooks docs ## everything, notebooks included

$(VENV)/notebooks: $(VENV)/runtime
	@echo 'Installing what the notebooks need'
	@$(PIP) '.[notebooks]' $(ONE_LINE)
	@touch $@

lab: $(VENV)/notebooks ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

bench: $(VENV)/develop ## the benchmarks, one table each
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

stress: $(VENV)/develop ## the long tests: kills, corruptions and interrupts by the hundred, gigabytes
	$(BIN)/pytest -m stress --timeout=3600 -s

format: $(VENV)/develop ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/develop
	$(BIN)/mypy

unit: $(VENV)/develop
	@$(UNIT) -n auto --dist loadgroup || { \
	  echo "Some of these watch real clocks, processes and a browser. What failed beside others runs once more, alone:"; \
	  $(UNIT) --last-failed --last-failed-no-failures none; }

# Copies are run: the documentation shows them with their outputs.
notebooks: $(VENV)/develop
	rm -rf build/notebooks && mkdir -p build && cp -r notebooks build/notebooks
	$(BIN)/pytest --nbmake --overwrite --nbmake-timeout=180 -n auto build/notebooks

docs: $(VENV)/develop
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

browser:
	@tools/install-chromium

sample: $(VENV)/runtime ## make data/ again with its seeded script
	$(BIN)/python data/make_sample.py

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-results
