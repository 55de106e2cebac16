# `make demo` and `make test` set everything up by themselves; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint types check clean

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: expected Python >= 3.11, got $$($(PYTHON) --version); name another with 'make PYTHON=python3.12 ...'"; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/.base: .venv/.python setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/.base
	$(BIN)/combicam demo --output demo

# Two processes of one thread each; a file's tests share what was traced for them.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the folder mapping of setup.py, so it reads the wheel.
types: .venv/.dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel dist/*.whl
	@names=$$(ls build/wheel | grep -v -e dist-info -e '^bin$$'); test "$$names" = combicam || { \
	  echo "types: expected the wheel to install combicam alone, got $$names"; exit 1; }
	MYPYPATH=build/wheel $(BIN)/mypy --config-file pyproject.toml -p combicam

check: lint types test

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache demo
