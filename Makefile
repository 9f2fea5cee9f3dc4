# Everything runs in .venv, which the first target that needs it makes; versions are pinned in constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: help install demo test test-all quality format tables docs clean

help: ## print the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hf_fst needs Python 3.11 or newer; run make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test]'
	touch $(STAMP)

install: $(STAMP) ## make .venv and install hf_fst with pinned versions

demo: $(STAMP) ## adapt a network from drawn to real streets, with and without a look-ahead; results in runs/
	$(BIN)/hf-fst train demo --sweep all --overwrite

test: $(STAMP) ## run the default test suite
	$(PYTEST)

test-all: $(STAMP) ## run the long tests: several processes, full equivalences
	$(PYTEST) -m "slow or distributed"

quality: $(STAMP) ## check style, formatting and the generated tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python examples/benchmarks/tables.py --check

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(STAMP) ## rewrite the tables in README and docs from docs/results/*.json
	$(BIN)/python examples/benchmarks/tables.py

docs: $(STAMP) ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## remove the environment and the runs
	rm -rf $(VENV) runs build site *.egg-info
