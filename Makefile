# `make demo` and `make test` do all the set-up themselves: .venv is made once, from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM = false
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2

.PHONY: demo test quick kills learn lint bench clean setup
.DEFAULT_GOAL := test

setup: .venv/ready
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"monro needs Python >= 3.11, and {sys.executable} is {v[0]}.{v[1]}: run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

demo: .venv/ready
	$(BIN)/monro run r1-mini --output runs/r1-mini --resume

test: .venv/ready
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

quick: .venv/ready
	$(BIN)/python -m pytest -q -m "not slow and not distributed and not browser"

kills: .venv/ready
	KILLS=100 $(BIN)/python -m pytest -q -s tests/integration/test_kills.py

learn: .venv/ready
	$(BIN)/python -m benchmarks.learn

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
