# Four commands, each of which works on a fresh machine: what is missing is made first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test check bench install

quickstart: $(READY)  ## a 4-bit student of a real teacher, with its report
	$(BIN)/compress apply quickstart

test: $(READY)  ## the fast tests, in two processes of one thread: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(READY)  ## style, types, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m compress.recipe.docs --check

bench:  ## how the numbers of docs/results.md are made; each line is a command
	@sed -n "s/^    //p" benchmarks/README.md

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(READY)
