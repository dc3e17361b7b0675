# One virtual environment, .venv, filled in two steps: `demo` installs the core only, `test` adds the test extra.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf …) apply.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
CHECKED ?= shapes
# Always the environment's own interpreter by path, so that another activated environment has no effect.
VENV_PYTHON = $(VENV)/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo demo-real test test-fast real-model lint types format docs pages pictures benchmark install install-test check-install constraints dev clean

help:
	@echo "make demo       edit facts into the embedded model with four methods and show what changed (installs first)"
	@echo "make demo-real  correct ten facts in SmolLM2-135M, a real model, and revert the edit (downloads 100 MB once)"
	@echo "make test       all tests                       ARGS='-k targets' goes to pytest, WORKERS=2 processes"
	@echo "make test-fast  the quick ones among them (tests/fast.txt), in less than a minute"
	@echo "make lint       ruff (rules, format), import contracts   make format fixes what it can"
	@echo "make types      mypy, strict"
	@echo "make docs       the documentation as a site in site/, links checked; make pages rewrites its generated parts"
	@echo "make pictures   the pictures of README.md, from the program itself"
	@echo "make benchmark  speed of the target optimisation against the plain reference, ARGS=… goes to the script"
	@echo "make constraints  resolve and pin all dependencies (constraints.txt)"
	@echo "make dev        everything a contributor needs, with the pre-commit hooks"
	@echo "make clean      remove $(VENV) and the tools' caches"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or newer); pip's environment variables are honoured."

demo: $(VENV)/.core
	$(VENV)/bin/errata demo --out runs/demo

# The model is downloaded once (about 100 MB) into errata's cache.
demo-real: $(VENV)/.gguf
	$(VENV)/bin/errata models get smollm2-135m-instruct
	$(VENV)/bin/errata demo --model smollm2-135m-instruct --out runs/demo-real

# One thread a worker: the workers share the cores already. Bytecode is written for the many processes of the tests; files
# are taken in the order of tests/conftest.py, longest first.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The tests check annotations at each call (tests/conftest.py): CHECKED=all those of every module, CHECKED=none none.
test: $(VENV)/.test real-model
	ERRATA_CHECKED=$(CHECKED) $(PYTEST) $(ARGS)

# For every save: no annotation is checked, and hypothesis tries few examples.
test-fast: $(VENV)/.test
	ERRATA_CHECKED=none ERRATA_FUZZ_DIVISOR=20 $(PYTEST) -m "not slow and not real" $(ARGS) @tests/fast.txt

# Needed by the tests marked `real`, which are skipped otherwise. ERRATA_SMOLLM2 may name a directory that contains it.
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

# Fails on dead links, missing pages and names that the API reference cannot find.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict
	@echo "Wrote site/index.html"

# Error codes, commands and studies, from the source; a test checks that they are current.
pages: $(VENV)/.test
	$(VENV_PYTHON) docs/make_pages.py

# Those of README.md; needs Chromium, and SmolLM2 (make real-model).
pictures: $(VENV)/.test
	$(VENV_PYTHON) -m docs.make_pictures $(ARGS)

benchmark: $(VENV)/.core
	$(VENV_PYTHON) benchmarks/targets.py $(ARGS)

install: $(VENV)/.core

install-test: $(VENV)/.test

# Checks that every pin is satisfied; CI runs it right after the installation.
check-install: $(VENV)/.test
	$(VENV_PYTHON) -m pip check

# Pins the whole resolution, for the core and all extras. Existing pins are kept while they fit; UPGRADE=--upgrade takes the
# newest of everything. The project's own line and the local label of a CPU build of torch (2.13.0+cpu) are removed,
# because they mean nothing on another machine.
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

# Each stamp is written last, so that an interrupted installation is repeated.
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

$(VENV)/.docs: $(VENV)/.core
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@

clean:
	rm -rf site $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
