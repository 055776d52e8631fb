# Targets for a checkout. Each creates .venv if it is missing and may be run again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
RUNS ?= runs
DEMO := $(RUNS)/demo
WORLD := $(RUNS)/demo-world
DEMO_DATA := data.train=$(WORLD)/train data.val=$(WORLD)/val data.test=$(WORLD)/test
STAMP := $(VENV)/.svilm-installed
JOBS ?= 2
# Many slow tests wait, for a time limit or for another rank.
SLOW_JOBS ?= 3

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo demo-control results test test-slow instruction-sets faults fuzz lint static-check counts-check gpu gpu-full clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP)  ## create .venv and install the package with everything the tests need

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "setuptools>=77" wheel
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt ninja hjson msgpack psutil py-cpuinfo numpy packaging pydantic tqdm einops
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

# Two ranks under the DeepSpeed launcher, on a free port. The two MALLOC settings let glibc keep memory
# that a step frees: 337 page faults a step instead of 14,756, 3 to 6 % less processor time, and the
# same bits.
LAUNCH = DS_ACCELERATOR=cpu MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 \
	$(BIN)/deepspeed --quiet --num_accelerators 2 --master_port \
	$$($(BIN)/python -c "from svilm_fast.train.environment import free_port; print(free_port())") \
	--module svilm_fast.train.pretrain --config configs/demo.yaml --overwrite report.at_end=false

demo: $(STAMP)  ## render clips, train on 2 ranks, evaluate, write runs/demo/report.html
	$(BIN)/svilm data world --out $(WORLD)
	$(LAUNCH) run.dir=$(DEMO) $(DEMO_DATA)
	$(BIN)/svilm report --run $(DEMO)
	$(BIN)/svilm evaluate retrieval --run $(DEMO) --at-least 20 --times-colours 2

demo-control: $(STAMP)  ## the demo on shuffled captions: retrieval must stay at chance
	$(BIN)/svilm data world --out $(WORLD)
	$(LAUNCH) run.dir=$(DEMO)-control run.name=demo-control data.shuffle_captions=true $(DEMO_DATA)
	$(BIN)/svilm evaluate retrieval --run $(DEMO)-control --at-chance

TABLES := demo objectives spatial_grounding temporal_grouping video_compression token_dropping video_masking caption_scale groups nouns beta gumbel frames \
	vidrop_settings viclip_scale downstream viclip_demo vidrop_demo distill_demo
results: $(STAMP)  ## train what docs/results/runs lacks of the tables of docs/results.md (hours; resumes), write the page
	for table in $(TABLES); do $(BIN)/svilm ablate $$table --jobs $(JOBS) --results docs/results/runs --json docs/results/$$table.json; done
	$(BIN)/svilm results $(TABLES:%=docs/results/%.json)

test: $(STAMP)  ## the fast tests (CPU)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(STAMP)  ## all planted bugs, ZeRO stages, long property tests (CPU)
	$(BIN)/python -m pytest -m "slow and not gpu" -n $(SLOW_JOBS) --dist loadfile --no-loadscope-reorder --timeout 900

instruction-sets: $(STAMP)  ## the numeric tests under SSE, AVX2 and AVX-512 with three seeds each (an hour; CI: INSTRUCTION_SETS=--short)
	$(BIN)/python -m tests.instruction_sets --jobs $(JOBS) $(INSTRUCTION_SETS)

faults: $(STAMP)  ## inject twenty kinds of faults into runs of two ranks (docs/faults.md)
	$(BIN)/python -m tests.faults --out $(RUNS)/faults.json

lint: $(STAMP)  ## check style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

static-check: $(STAMP)  ## compile every kernel variant for three GPUs, compare with the table
	$(BIN)/svilm bench static --check --workers $(JOBS)

counts-check: $(STAMP)  ## compare collectives, host waits and peak bytes with their tables
	$(BIN)/svilm bench counts --check --kind collectives --kind waits --kind memory

fuzz: $(STAMP)  ## run generated inputs and shapes for half an hour; resumes from runs/fuzz.json
	$(BIN)/python -m tests.fuzz --out $(RUNS)/fuzz.json

clean:  ## remove .venv, runs/ and build files
	rm -rf $(VENV) $(RUNS) build dist *.egg-info

GPU_PYTHON ?= python3
RESULTS ?= bench/results
gpu:  ## measure constants of the GPU, run the GPU tests of the ops, then the benchmark (needs PyTorch, Triton, einops, pytest, hypothesis)
	$(GPU_PYTHON) -m svilm_fast.bench.gpu.check --out $(RESULTS)

gpu-full: gpu  ## also test attention packages, gradient cache, memory plan and DeepSpeed steps on the GPU (needs all dependencies of the package)
	$(GPU_PYTHON) -m pytest tests/gpu_full tests/distributed tests/train -m gpu -q
