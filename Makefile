VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: install gstreamer system demo test lint bench dashboards docs lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@echo "== Setting up $(VENV): the packages of requirements.lock, into this folder only"
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, and this is " + sys.version.split()[0] + "; if there is another: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check --require-hashes --progress-bar off -q -r requirements.lock
	@$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

# Debian's GStreamer bindings, where they are there and made for this Python: linked, not installed.
gstreamer: install
	@gi=/usr/lib/python3/dist-packages/gi; \
	if [ -d $$gi ] && $(BIN)/python -c "import sys; sys.exit(not list(__import__('pathlib').Path('$$gi').glob(f'_gi.cpython-{sys.version_info.major}{sys.version_info.minor}-*.so')))"; \
	then ln -sfn $$gi "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gi"; fi

demo: install gstreamer
	@$(BIN)/benchlab-otel demo

lint: install
	$(BIN)/ruff check exporters tests bench grafana
	$(BIN)/ruff format --check exporters tests bench grafana
	$(BIN)/mypy
	$(BIN)/lint-imports

# What tests need from outside: Debian packages, where this user may install them, and a Collector, where Go is.
system:
	@tests/system.sh
	@tests/stack.sh
	@tests/pytools.sh

test: install system
	@$(MAKE) --no-print-directory gstreamer lint
	$(BIN)/pytest

# Beside the packages of the lock: the peer of bench/windows.py, which nothing else needs.
bench: install
	@$(BIN)/pip install --disable-pip-version-check -q zeus==0.16.0
	$(BIN)/python bench/run.py

# docs/metrics.md and docs/sources.md, from what the code declares.
docs: install
	$(BIN)/python docs/generate.py

# grafana/dashboards/*.json from grafana/benchlab_dashboards
dashboards: install
	PYTHONPATH=grafana $(BIN)/python -m benchlab_dashboards

lock:
	uv pip compile --universal --generate-hashes --no-header --group dev --all-extras -o requirements.lock pyproject.toml
	uv pip compile --universal --generate-hashes --no-header -c requirements.lock -o deploy/requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .build build *.egg-info
