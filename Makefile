# Two commands set everything up; both need Python 3.11 or newer with its venv module, and nothing else:
#
#   make bench    make .venv, install core and vision, run `kdzoo bench rkd`
#   make test     the same with the test tools, run the tests
#
# PYTHON=python3.12 picks another interpreter; the virtual environment is made once and kept (`make clean` removes it).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint tests/constraints.txt
PYPROJECTS := core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
PLUGINS := $(foreach file,$(wildcard plugins/*/pyproject.toml),--editable $(dir $(file)))

.PHONY: bench test lint docs clean

bench: $(VENV)/installed
	$(BIN)/kdzoo bench rkd

# One thread a process: two test processes of two threads each would wait for each other.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy core/src $(wildcard plugins/*/src) tools

docs: $(VENV)/installed
	$(BIN)/python tools/make_docs.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdzoo needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: on Debian, apt install python3-venv"; exit 1; }

# The stamps are newer than the files they were made from: a changed dependency installs again.
$(VENV)/installed: tests/constraints.txt core/pyproject.toml plugins/vision/pyproject.toml | $(BIN)/python
	@echo "installing kdzoo and kdzoo-vision into $(VENV) (torch is several GB; once)"
	$(PIP) --editable core --editable plugins/vision
	@touch $@

$(VENV)/installed-test: tests/constraints.txt $(PYPROJECTS) | $(BIN)/python
	@echo "installing everything with the test tools into $(VENV) (torch is several GB; once)"
	$(PIP) --editable 'core[test]' $(PLUGINS)
	@touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build core/build plugins/*/build .mypy_cache .pytest_cache .ruff_cache
