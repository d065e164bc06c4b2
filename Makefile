PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.kernels

.PHONY: demo test lint bench-gpu bench-cpu tables clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Longview needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# A CPU build of torch does not bring the compiler of the GPU kernels; the tests run them in its interpreter.
$(KERNELS): $(STAMP)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check triton==3.6.0
	touch $(KERNELS)

demo: $(STAMP)  ## the main job, end to end, on simulated data
	$(BIN)/longview demo

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(KERNELS)  ## lint, types and the whole test suite
	$(BIN)/pytest -n 2 --dist worksteal --durations=15

bench-gpu: $(STAMP)  ## the GPU figures of the README, as JSON in results/
	$(BIN)/longview bench attention --device cuda --plot docs/gpu-attention.png --json results/gpu-attention.json
	$(BIN)/longview bench layer --json results/gpu-layer.json
	$(BIN)/longview bench loss --json results/gpu-loss.json
	$(BIN)/longview bench step --plot docs/gpu-step.png --json results/gpu-step.json
	$(BIN)/longview bench train --device cuda --set loop.precision=bf16 --json results/gpu-train.json
	$(BIN)/longview bench quantisation --json results/gpu-quantisation.json
	$(BIN)/longview bench scoring --json results/gpu-scoring.json
	$(BIN)/longview bench memory-loss --device cuda --json results/gpu-memory-loss.json
	$(BIN)/longview bench memory-step --device cuda --json results/gpu-memory-step.json
	$(BIN)/python -m tests.ops.sanitize results/gpu-sanitizer.json

bench-cpu: $(STAMP)  ## the CPU speed figures of the README, as JSON in results/
	$(BIN)/longview bench attention --json results/cpu-attention.json
	$(BIN)/longview bench train --json results/cpu-train.json

tables: $(STAMP)  ## the tables of README and docs, from results/
	$(BIN)/python -m longview.evaluation.tables

clean:
	rm -rf $(VENV) build dist demo src/*.egg-info
