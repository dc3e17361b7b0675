# One virtual environment, .venv, filled in two steps: `demo` installs the core only, `test` adds the test extra.
# pip runs with its own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf …), nothing is overridden.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# Always the environment's own interpreter by path, so that another activated environment changes nothing.
VENV_PYTHON = $(VENV)/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo demo-real test real-model lint types format benchmark install install-test check-install constraints dev clean

help:
	@echo "make demo       edit facts into the embedded model with four methods and show what changed (installs first)"
	@echo "make demo-real  correct ten facts in SmolLM2-135M, a real model, and take it back (downloads 100 MB once)"
	@echo "make test       all tests                       ARGS='-k targets' goes to pytest, WORKERS=2 processes"
	@echo "make lint       ruff, rules and format          make format mends what it can"
	@echo "make types      mypy, strict"
	@echo "make benchmark  speed of the target optimisation against the plain reference, ARGS=… goes to the script"
	@echo "make constraints  resolve and pin every dependency anew (constraints.txt)"
	@echo "make dev        everything a contributor needs, with the pre-commit hooks"
	@echo "make clean      remove $(VENV) and the tools' caches"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or newer); pip's environment variables are honoured."

demo: $(VENV)/.core
	$(VENV)/bin/errata demo --out runs/demo

# The model is downloaded once (about 100 MB) and kept in errata's cache.
demo-real: $(VENV)/.gguf
	$(VENV)/bin/errata models get smollm2-135m-instruct
	$(VENV)/bin/errata demo --model smollm2-135m-instruct --out runs/demo-real

# One thread a worker: the workers share the cores already.
test: $(VENV)/.test real-model
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# For the tests marked `real`, which are skipped without it. ERRATA_SMOLLM2 may name a directory that holds it.
real-model: $(VENV)/.test
	@test -n "$$ERRATA_SMOLLM2" || $(VENV)/bin/errata models get smollm2-135m-instruct || \
	  echo "warning: SmolLM2 cannot be downloaded; the tests that need it are skipped" >&2

lint: $(VENV)/.test
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports

types: $(VENV)/.test
	$(VENV_PYTHON) -m mypy

format: $(VENV)/.test
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

benchmark: $(VENV)/.core
	$(VENV_PYTHON) benchmarks/targets.py $(ARGS)

install: $(VENV)/.core

install-test: $(VENV)/.test

# Every pin has to hold: CI runs this right after the installation.
check-install: $(VENV)/.test
	$(VENV_PYTHON) -m pip check

# Pins the whole resolution, for the core and all extras. Versions that are pinned already stay where they still fit;
# UPGRADE=--upgrade takes the newest of everything. The line of the project itself and the local label of a CPU build of
# torch (2.13.0+cpu) mean nothing on another machine.
constraints: $(VENV)/.test
	$(PIP_INSTALL) -e '.[dev]'
	$(VENV_PYTHON) -m piptools compile --quiet --all-extras --strip-extras --no-header --no-annotate $(UPGRADE) \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file constraints.txt pyproject.toml
	sed -i -e '/^errata @/d' -e '/^#/d' -e '/^$$/d' -e 's/+cpu$$//' constraints.txt
	sed -i -e '1i # The exact version of every package, direct or not, that the tests and the published numbers ran with.' \
	  -e '1i # Made by `make constraints`; do not edit by hand.' constraints.txt

dev: $(VENV)/.test
	$(PIP_INSTALL) -e '.[dev]'
	$(VENV_PYTHON) -m pre_commit install

# The stamps are written last, so an interrupted installation is taken up again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "errata needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.gguf: $(VENV)/.core
	$(PIP_INSTALL) -e '.[gguf]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP_INSTALL) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
