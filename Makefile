# `make demo` and `make test` set everything up by themselves; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
BIN := .venv/bin

PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test long slow test-oldest test-newest lint types docs check constraints clean

# constraints.txt holds the versions that the tests are known to pass with.
define install
@$(PIP) install --quiet --constraint constraints.txt --editable '$(1)' || { \
  echo "make: a version of constraints.txt cannot be had here (the error stands above);"; \
  echo "make: installing what the range of setup.py allows instead, which may be untested"; \
  $(PIP) install --quiet --editable '$(1)'; }
@touch $@
endef

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: expected Python >= 3.11, got $$($(PYTHON) --version); name another with 'make PYTHON=python3.12 ...'"; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/.base: .venv/.python setup.py pyproject.toml constraints.txt
	$(call install,.)

.venv/.dev: .venv/.base
	$(call install,.[dev])

demo: .venv/.base
	$(BIN)/combicam demo --output demo

# Two processes of one thread each; a file's tests share what was traced for them.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

long: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'long and not slow'

slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

# In environments of their own: the lowest versions that setup.py names, the newest of the index.
test-oldest: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-oldest test-newest: .venv/.dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .$@
	$(BIN)/uv pip install --quiet --python .$@/bin/python --resolution $(RESOLUTION) --editable '.[dev]'
	@$(BIN)/uv pip list --python .$@/bin/python 2>/dev/null | grep -E '^(torch|triton|onnx|numpy)'
	.$@/bin/python -m pytest -n 2 --dist loadfile -m 'not slow'

# PINS="torch==2.14.1 torchvision==0.29.1" holds some back; run the tests before you commit the file.
constraints: .venv/.dev
	printf '%s\n' $(PINS) > .venv/pins.txt
	$(BIN)/uv pip compile --quiet setup.py --extra dev --strip-extras --no-annotate --no-header \
	  --python-version 3.11 --constraint .venv/pins.txt --upgrade --output-file constraints.txt

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the folder mapping of setup.py, so it reads the wheel.
types: .venv/.dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PIP) install --quiet --no-deps --target build/wheel dist/*.whl
	@names=$$(ls build/wheel | grep -v -e dist-info -e '^bin$$'); test "$$names" = combicam || { \
	  echo "types: expected the wheel to install combicam alone, got $$names"; exit 1; }
	MYPYPATH=build/wheel $(BIN)/mypy --config-file pyproject.toml -p combicam

# The site with the API reference, in site/; a broken link or an unreadable docstring is an error.
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

check: lint types docs test long

clean:
	rm -rf build dist site .test-oldest .test-newest .pytest_cache .mypy_cache .ruff_cache demo demo-photos
