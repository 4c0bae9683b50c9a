# `make demo` and `make test` need nothing but Python 3.11 and this folder.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BROWSER_VENV ?= .venv-browser
PEERS ?=
SECONDS ?= 600
TESTS ?=
THREADS ?= 1 2
SETS ?= ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default,ONEDNN_MAX_CPU_ISA=SSE41
# Waiting threads go to sleep after a moment, as in the command `unfool`: see set_wait_policy in cli/main.py.
ifeq ($(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME),)
export GOMP_SPINCOUNT := 1000
export KMP_BLOCKTIME := 0
endif
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
BROWSER_TESTS := tests/report/test_page_in_browser.py tests/serve/test_playground_page.py
BROWSER_READY := $(BROWSER_VENV)/.ready

.PHONY: help demo test check test-browser docs slow soak test-portable bench clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */: /'

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $(DOCS_READY)

# Gradio needs an older Pillow than the other packages, so its tests have an environment of their own.
$(BROWSER_READY): pyproject.toml
	test -x $(BROWSER_VENV)/bin/python || $(PYTHON) -m venv $(BROWSER_VENV)
	$(BROWSER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BROWSER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	touch $(BROWSER_READY)

demo: $(READY)  ## Evaluate digits with and without DiffPure; table and report in runs/demo/.
	$(BIN)/unfool evaluate demo --out runs/demo

check: $(READY)
	$(BIN)/ruff format --check src tests bench docs/*.py examples
	$(BIN)/ruff check src tests bench docs/*.py examples
	$(BIN)/codespell src tests bench deploy docs examples experiments *.md
	$(BIN)/pyright --pythonpath $(BIN)/python

test: check  ## Run all checks: format, lint, types, tests.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test-browser: $(BROWSER_READY)  ## Test the HTML pages and the playground in Chromium, which must be installed.
	@which chromium chromium-browser google-chrome google-chrome-stable 2>/dev/null | grep -q . || \
		{ echo "no Chromium is installed: apt-get install chromium"; exit 1; }
	$(BROWSER_VENV)/bin/python -m pytest -rs $(BROWSER_TESTS)

docs: $(DOCS_READY)  ## Build the documentation site in docs/_build/html; warnings are errors.
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

slow: $(READY)  ## Run the tests that take minutes, on the data in UNFOOL_DATA and UNFOOL_WEIGHTS.
	$(BIN)/python -m pytest -m slow

soak: $(READY)  ## Kill commands at random moments and compare their results, for SECONDS=600.
	OMP_NUM_THREADS=1 $(BIN)/python bench/soak.py --seconds $(SECONDS)

# Emulates other processors by limiting the instruction sets that torch uses.
test-portable: $(READY)  ## Run the tests (or TESTS="FOLDER ...") as on other processors, with 1 and 2 threads.
	@failed=; for set in $(SETS); do for threads in $(THREADS); do \
		echo "== $$set, threads: $$threads"; \
		env $$(echo $$set | tr , ' ') UNFOOL_TEST_THREADS=$$threads OMP_NUM_THREADS=$$threads \
		$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup $(TESTS) \
		|| failed="$$failed $$set/$$threads"; \
	done; done; test -z "$$failed" || { echo "failed under:$$failed"; exit 1; }

bench: $(READY)  ## Measure speed, memory and error of gradients for docs/speed.md; PEERS=FOLDER includes public code.
	OMP_NUM_THREADS=1 $(BIN)/python bench/speed.py --write docs $(if $(PEERS),--peers '$(PEERS)')

clean:  ## Remove the environment, all runs, and the built documentation.
	rm -rf $(VENV) $(BROWSER_VENV) runs docs/_build docs/reference docs/gallery
