# `make demo` and `make test` set up everything they need in $(VENV) and start; a second call starts at once.
VENV ?= .venv
PYTHON ?= python3
PY = $(VENV)/bin/python

.PHONY: setup demo test lint lock

setup:
	@$(PYTHON) tools/install.py --venv $(VENV)

demo: setup
	@$(PY) tools/demo.py

test: setup
	@$(PY) -m pytest

lint: setup
	@$(PY) -m ruff check projects tools tests configs

# Resolve requirements/all.in again; the lock serves Python 3.10 to 3.12.
lock:
	uv pip compile --quiet --universal --python-version 3.10 --no-header --override requirements/overrides.in \
	    requirements/all.in --output-file requirements/lock.txt
