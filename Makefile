# `make demo` and `make test` need nothing but Python 3.11 and this folder.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PEERS ?=
# Threads that wait sleep after a moment, as in the command `unfool`: see set_wait_policy in cli/main.py.
ifeq ($(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME),)
export GOMP_SPINCOUNT := 1000
export KMP_BLOCKTIME := 0
endif
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check slow bench clean

help:  ## What can be made.
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## */: /'

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## Evaluate DiffPure on digits, undefended and defended: table and report in runs/demo/.
	$(BIN)/unfool evaluate demo --out runs/demo

check: $(READY)
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples
	$(BIN)/codespell src tests bench docs examples experiments *.md
	$(BIN)/pyright --pythonpath $(BIN)/python

test: check  ## All checks: format, lint, types, tests.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

slow: $(READY)  ## The tests that take minutes, on the data in UNFOOL_DATA and UNFOOL_WEIGHTS.
	$(BIN)/python -m pytest -m slow

bench: $(READY)  ## Speed, memory and exactness of gradients, into docs/speed.md; PEERS=FOLDER: public code, too.
	OMP_NUM_THREADS=1 $(BIN)/python bench/speed.py --write docs $(if $(PEERS),--peers '$(PEERS)')

clean:  ## Remove the environment and all runs.
	rm -rf $(VENV) runs
