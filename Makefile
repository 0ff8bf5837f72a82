PYTHON ?= python3.11
EXTRA ?= cpu
BIN := .venv/bin

.PHONY: setup demo test check bench-grading clean

setup: .venv/.installed

.venv/.installed: pyproject.toml $(wildcard .ci/torchvision-cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[$(EXTRA),dev]'
	test $(EXTRA) != cpu || $(BIN)/pip install --quiet ./.ci/torchvision-cpu
	touch $@

demo: setup
	$(BIN)/mmprm demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --quiet tests/test_imports.py

test: setup
	$(BIN)/pytest

bench-grading: setup
	$(BIN)/python benchmarks/grading.py

clean:
	rm -rf .venv runs build *.egg-info
