# Everything a person or CI runs here. `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python of the machine that is new enough.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := server $(wildcard packages/*)
SOURCES := server packages tests bench examples conftest.py
PYPROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES))
KEEP ?=
BASELINE ?=
ONLY ?=
ROUNDS ?=
MARKDOWN ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment

.PHONY: install
install: $(VENV)/.installed ## Set up .venv, and a real Triton where this machine can run one

$(VENV)/.installed: requirements/bootstrap.txt requirements/dev.txt $(PYPROJECTS)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 1; }
	@echo "==> Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { echo "This Python cannot make virtual environments (Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@echo "==> Installing the locked packages"
	@# pip is the fallback where the package index is known to pip's configuration only.
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt \
	|| $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@echo "==> Installing this repository's distributions, editable"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-sources --no-deps --no-build-isolation \
		$(addprefix --editable ,$(PACKAGES))
	@$(BIN)/qwen3-triton triton --prepare
	@touch $@

.PHONY: lock
lock: ## Compile the requirements files anew (versions and hashes, no registry address)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" requirements/bootstrap.in -o requirements/bootstrap.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" $(PYPROJECTS) --extra onnx --extra otel --extra files --extra dask \
		--extra langchain --extra llamaindex requirements/dev.in \
		$(addprefix --no-emit-package ,qwen3-triton-client qwen3-nano qwen3-triton-ingest qwen3-triton-gateway qwen3-triton-tools) -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --no-sources --constraint requirements/dev.txt \
		server/pyproject.toml --extra otel requirements/server.in -o requirements/server.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --override requirements/parity-overrides.txt \
		requirements/parity.in -o requirements/parity.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" requirements/bench-baseline.in -o requirements/bench-baseline.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --override requirements/parity-overrides.txt \
		requirements/bench-infinity.in -o requirements/bench-infinity.txt

.PHONY: openapi
openapi: install ## Renew docs/openapi.json after a change of the interface that is meant
	@PYTHONPATH=server/tests $(BIN)/python server/tests/test_openapi.py

.PHONY: docs
docs: install ## Build the documentation site into build/site; a dead link or a page outside the navigation fails
	@$(BIN)/python docs/build_site.py

# The product

.PHONY: demo
demo: install ## From nothing to a search hit through a real Triton (KEEP=1 leaves the stack up)
	@cd examples && ../$(BIN)/python -m demo $(if $(KEEP),--keep)

# The checks

.PHONY: test
test: install ## Run every test
	@$(BIN)/python -m pytest

.PHONY: lint
lint: install ## Format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

.PHONY: check
check: lint ## The same, and known vulnerabilities of the locked packages (asks the package index)
	@$(BIN)/pip-audit --require-hashes --disable-pip -r requirements/dev.txt

.PHONY: format
format: install ## Format and mend what can be mended
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: parity
parity: install $(VENV)-parity/.installed ## Compare with the live reference implementation (torch, transformers)
	@$(VENV)-parity/bin/python -m pytest -c tests/parity/pytest.ini --rootdir tests/parity tests/parity

# pip, and torch by itself: it finds a CPU build on machines that keep one for it.
$(VENV)-parity/.installed: requirements/parity.txt packages/qwen3-nano/pyproject.toml | $(VENV)/.installed
	@echo "==> Creating $(VENV)-parity with torch, transformers and sentence-transformers"
	@$(PYTHON) -m venv $(VENV)-parity
	@$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--require-hashes -r requirements/parity.txt
	@$(BIN)/uv pip install --quiet --python $(VENV)-parity/bin/python --offline --no-sources --no-deps --no-build-isolation \
		--editable packages/qwen3-nano
	@touch $@

.PHONY: bench
bench: install ## Measure the gateway beside its ceiling (BASELINE=app.py: and beside another gateway)
	@PYTHONPATH=tests/support $(BIN)/python bench/run.py $(if $(BASELINE),--baseline $(BASELINE)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

.PHONY: clean
clean: ## Remove the environments and caches of this checkout
	@rm -rf $(VENV) $(VENV)-parity $(VENV)-baseline $(VENV)-infinity .pytest_cache .ruff_cache .hypothesis dist build .cache
