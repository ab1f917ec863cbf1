VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint bench lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@echo "== Setting up $(VENV): the packages of requirements.lock, into this folder only"
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@$(BIN)/pip install --disable-pip-version-check --require-hashes --progress-bar off -q -r requirements.lock
	@$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	@$(BIN)/benchlab-otel demo

lint: install
	$(BIN)/ruff check exporters tests bench
	$(BIN)/ruff format --check exporters tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install
	@tests/system.sh
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest

bench: install
	$(BIN)/python bench/run.py

lock:
	uv pip compile --universal --generate-hashes --no-header --group dev --all-extras -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info
