# One word per task. Every word sets up what it needs, also on a bare clone.
.DEFAULT_GOAL := help
.PHONY: help run test browser bench bench-full chaos lint format lock clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

help: ## Show these words
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(STAMP)-run ## Serve Signalbox on http://127.0.0.1:8000
	@exec $(BIN)/python manage.py serve

test: $(STAMP)-dev ## Run the whole test suite
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

browser: $(STAMP)-dev ## Run the browser tests alone
	@$(BIN)/python -m pytest tests/browser $(ARGS)

bench: $(STAMP)-dev ## Measure how fast it is, in ten minutes; with QUICK=1 in one
	@$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick) $(ARGS)

bench-full: $(STAMP)-dev ## Measure with longer rounds and the heaviest rows
	@$(BIN)/python -m tests.benchmarks --full $(ARGS)

chaos: $(STAMP)-dev ## Break things on purpose for half an hour; with QUICK=1 for two minutes
	@$(BIN)/python -m tests.chaos $(if $(QUICK),--quick) $(ARGS)

lint: $(STAMP)-dev ## Check style, types, templates and migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/djlint templates --lint --quiet
	SIGNALBOX_DATA=$$(mktemp -d) DATABASE_URL=postgres://nobody@localhost/none $(BIN)/mypy .
	SIGNALBOX_DATA=$$(mktemp -d) DATABASE_URL=postgres://nobody@localhost/none \
		$(BIN)/python -W ignore manage.py makemigrations --check --dry-run

format: $(STAMP)-dev ## Put the code into shape
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: $(STAMP)-dev ## Resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --upgrade pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --upgrade pyproject.toml --group dev -o requirements-dev.lock

clean: ## Remove what was installed; data in var/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

$(STAMP)-python:
	@$(PYTHON) -c 'import sys; sys.exit("Signalbox needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Set PYTHON to a later one.") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .venv
	@touch $@

$(STAMP)-run: requirements.lock | $(STAMP)-python
	@echo "Installing Signalbox into .venv (a minute, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(STAMP)-dev: requirements-dev.lock | $(STAMP)-python
	@echo "Installing what the tests need into .venv (a minute, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@ $(STAMP)-run
