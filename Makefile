# Everything runs in a virtual environment inside the checkout, made on first use by tools/setup_env.sh.
#   PYTHON=python3.12         the Python to make it with (default python3)
#   VENV=DIR                  where it lies (default .venv; DIR-check beside it has the linter and the type checker)
#   TORCH_INDEX=URL           index that has torch's CPU builds, where pip's own settings don't find them
#   PYTEST_ARGS="-k noise"    further arguments for pytest
# experiments-gpu runs on the machine's own Python, which has torch, vLLM and this package:
#   GPU_PYTHON=python3        that Python
#   GPU_MODELS=DIR            where its models lie, or are left when they are trained (default experiments/work/models)
#   GPU_RESULTS=DIR           where its results are left (default experiments/results)
#   GPU_ARGS="--deadline 500" further arguments for run.py
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
export PYTHON VENV TORCH_INDEX

RUN = $(VENV)/bin/python
CHECK = $(VENV)-check/bin/python

.PHONY: help demo test check format bench-check experiments-small experiments-gpu env-check env-demo env-test clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: env-demo ## Set up and run the demo audit; leaves report.html
	@HF_HUB_OFFLINE=1 $(RUN) -m veridifr demo --report report.html

test: env-test ## Set up and run all tests, vLLM on the CPU included
	@$(RUN) -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

check: env-check ## Lint, formatting and types
	@status=0; for tool in "ruff check ." "ruff format --check ." mypy; do \
	  echo "$$tool"; $(CHECK) -m $$tool || status=1; done; exit $$status

format: env-check ## Fix what the linter can fix, and format
	$(CHECK) -m ruff check --fix .
	$(CHECK) -m ruff format .

bench-check: env-demo ## Recompute every benchmark's figures from its raw results
	@$(RUN) tools/bench_check.py

experiments-small: env-test ## Serve, replay and score a reduced table of detectors, on this CPU; leaves experiments/work
	@$(RUN) experiments/run.py experiments/small.toml --results experiments/work/results

GPU_PYTHON ?= python3
GPU_MODELS ?= experiments/work/models
GPU_RESULTS ?= experiments/results
GPU_ARGS ?=
experiments-gpu: ## Train two larger models on this GPU, then serve and judge them; GPU_PYTHON has torch, vLLM and veridifr
	@$(GPU_PYTHON) experiments/train.py $(GPU_MODELS)
	@VERIDIFR_MODELS=$(GPU_MODELS) $(GPU_PYTHON) experiments/run.py experiments/gpu.toml --jobs 8 --judges 10 --keep-going \
	  --results $(GPU_RESULTS) $(GPU_ARGS)

env-demo env-test: env-%:
	@tools/setup_env.sh $*

env-check:
	@VENV=$(VENV)-check tools/setup_env.sh check

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) $(VENV)-check .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist report.html
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
