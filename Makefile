PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Small models on a busy machine: more threads than free cores only wait for each other.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow quality style bench

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch first and alone: any looser request brings gigabytes of GPU libraries.
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

demo: $(READY) ## Train a small backbone and write demo/report.html (DATA=DIR: on your images)
	$(BIN)/python examples/demo.py --output_dir demo $(if $(DATA),--data "$(DATA)")

test: $(READY) ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(READY) ## Run the long tests as well
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

quality: $(READY) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

style: $(READY) ## Format, apply lint fixes, copy what all data set scripts share
	$(BIN)/python dataset_scripts/copy_common.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure the pretraining step and the start-up
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pretraining_step.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/start_up.py
