# Two commands on a bare machine (Python 3.11 or later, make, git): make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow faults dev clean

demo: $(VENV)/.installed
	$(BIN)/skipway train --recipe demo --out runs/demo
	$(BIN)/skipway evaluate runs/demo
	@echo "run folder: runs/demo    pictures: runs/demo/curves.png runs/demo/mistakes.png"

test: $(VENV)/.test-installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term

slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m slow

faults: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m faults -s tests/faults

dev: $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test-installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.installed
