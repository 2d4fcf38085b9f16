# make install   the package and its tools in .venv
# make run       a server with a demonstration sale: make run PORT=8080 DATA=./holdfast-data
# make test      every test (ARGS="tests/lua -k expire" for some)
# make bench     Holdfast beside its peers (ARGS="--quick", ARGS="--rows reserve,pay --rounds 3 --seconds 2")
# make chaos     what can go wrong, made to go wrong (ARGS="--quick", ARGS="--rows 2 --seed 7")
# make drill     a hot sale on a cluster of six nodes, a primary killed in the middle (ARGS="--seconds 60 --shards 3")
# make lint      ruff, and mypy on the built wheel

PYTHON ?= python3
VENV := .venv
TYPES := .venv-types
# Stamps: a changed pyproject.toml or constraints.txt installs again.
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
TYPES_INSTALLED := $(TYPES)/.installed

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "holdfast needs Python 3.11 or newer, and '$(PYTHON)' is not: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
# Makes the environment $(1) with the pinned setuptools, which then builds: no build environment is fetched unpinned.
MAKE_VENV = $(PYTHON) -m venv $(1) || \
	{ echo "'$(PYTHON)' cannot make a virtual environment: on Debian, apt-get install python3-venv" >&2; exit 1; }; \
	$(1)/bin/python -m pip install --quiet --constraint constraints.txt setuptools

.PHONY: install run test bench chaos drill lint format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing into $(VENV): once, a minute or two"
	@$(call MAKE_VENV,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,lint,load]'
	@touch $@

# One plain command, which make runs without a shell: Ctrl-C reaches the server, and its exit status is make's.
run: $(INSTALLED)
	@$(VENV)/bin/holdfast serve --demo $(if $(PORT),--port $(PORT)) $(if $(DATA),--data-dir '$(DATA)')

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

# -P: the root, with our http/ in it, is not put on the path.
bench: $(BENCH_INSTALLED)
	@PYTHONPATH=tests $(VENV)/bin/python -P -m bench $(ARGS)

$(BENCH_INSTALLED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	@touch $@

# -P: as for bench.
chaos: $(BENCH_INSTALLED)
	@PYTHONPATH=tests $(VENV)/bin/python -P -m chaos $(ARGS)

# -P: as for bench.
drill: $(BENCH_INSTALLED)
	@PYTHONPATH=tests $(VENV)/bin/python -P -m chaos.drill $(ARGS)

# Type checkers do not see through the editable install, so they are shown the built wheel, from a folder
# where our http/ cannot be taken for the standard library's. build/ would carry deleted modules into the wheel.
lint: $(INSTALLED) $(TYPES_INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@rm -rf build $(TYPES)/wheel
	@$(TYPES)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(TYPES)/wheel .
	@rm -rf build
	@$(TYPES)/bin/python -m pip install --quiet --no-deps --force-reinstall $(TYPES)/wheel/holdfast-*.whl
	cd $(TYPES) && bin/mypy --config-file ../pyproject.toml --strict -p holdfast.engine -p holdfast.http -p holdfast.lua

$(TYPES_INSTALLED): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@$(call MAKE_VENV,$(TYPES))
	@$(TYPES)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation '.[lint,load]'
	@touch $@

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(TYPES) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find engine lua http tests -name __pycache__ -type d -prune -exec rm -rf {} +
