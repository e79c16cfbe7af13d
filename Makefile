# make quickstart   train, evaluate, export and sample a small energy-based language model (about five minutes)
# make test         the test-suite on two processes
# make lint         ruff, check and format
# make docs         the documentation as a site: open site/index.html
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_INSTALLED := $(VENV)/.test-installed
LINT_INSTALLED := $(VENV)/.lint-installed

export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test lint install docs

quickstart: $(INSTALLED)
	$(BIN)/hf-elm quickstart $(ARGS)

test: $(TEST_INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(LINT_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(TEST_INSTALLED)

docs: $(TEST_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# the stamp makes a second call quick; a change of the metadata installs again
$(INSTALLED): setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,plot]"
	touch $@

$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,plot,retrieval,eval,demo,docs,notebooks,test]"
	touch $@

$(LINT_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ruff
	touch $@
