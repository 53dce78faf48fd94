# Two commands: `make demo` (what the software does) and `make test` (that it does it).
PYTHON ?= python3
VENV := .venv
RUN := runs/demo
CONFIG := configs/demo.py

.PHONY: demo test test-slow lint format clean

# Stamp files: an install is repeated only when its list of requirements changes.
$(VENV)/.runtime: requirements.txt requirements-images.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mvo_jax needs Python 3.11 or newer; try: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-images.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt requirements-parity.txt requirements-export.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.runtime
	$(VENV)/bin/python train.py --config $(CONFIG) --workdir $(RUN)
	$(VENV)/bin/python eval.py --workdir $(RUN)

test: $(VENV)/.dev lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# What `make test` leaves out: full-size networks, pairs of processes, many kills, benchmarks.
test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf runs data .pytest_cache .ruff_cache
