VENV ?= .venv
PY := $(VENV)/bin/python
.PHONY: install demo test train-smoke test-all lint fmt type corpus weights bench clean
.DEFAULT_GOAL := demo

$(VENV)/.ok: pyproject.toml tools/setup.sh
	bash tools/setup.sh $(VENV)
	@touch $@

install: $(VENV)/.ok
demo: $(VENV)/.ok
	$(PY) -m tools.cli demo
test: $(VENV)/.ok
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 tests
train-smoke: $(VENV)/.ok
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/e2e/test_train_processes.py tests/e2e/test_cli_train.py
test-all: $(VENV)/.ok
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not gpu" tests
lint: $(VENV)/.ok
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports
fmt: $(VENV)/.ok
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .
type: $(VENV)/.ok
	$(VENV)/bin/mypy
corpus: $(VENV)/.ok
	$(PY) -m tools.corpus $(CORPUS_ARGS)
weights: $(VENV)/.ok
	$(PY) -m tools.train_weights
bench: $(VENV)/.ok
	$(PY) -m tools.bench
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
