# make demo | federation-demo | test | check | bench | bench-engines | bench-federation: each creates what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo federation-demo test check bench bench-engines bench-federation clean

demo: $(VENV)/.demo
	@$(BIN)/hansa demo

# Four hospitals as processes of their own, with certificates and sockets; then the same job in one process, bit by bit.
federation-demo: $(VENV)/.federation
	@$(BIN)/hansa simulate-federation src/hansa/starter.toml --compare

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	@$(BIN)/ruff check src tests examples benchmarks
	@$(BIN)/ruff format --check src tests examples benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks

bench-engines: $(INSTALLED)
	@$(BIN)/python -m benchmarks.engines

bench-federation: $(INSTALLED)
	@$(BIN)/python -m benchmarks.federation

# The demo needs no PyTorch and no tools: it installs in a minute.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Hansa into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.federation: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Hansa with its federation into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[federation]'
	@touch $@ $(VENV)/.demo $(VENV)/.federation

$(INSTALLED): pyproject.toml constraints.txt dev-requirements.txt | $(VENV)/bin/python
	@echo "installing Hansa and its tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,jax,dask,ray,spark,federation,otel]' -r dev-requirements.txt
	@touch $@ $(VENV)/.demo $(VENV)/.federation

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Hansa needs Python 3.11 or newer; this is $$($(PYTHON) --version). Write: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV)
