# make demo | test | test-gpu | check | clean. Each sets up .venv by itself; PYTHON=python3.11 picks its Python.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# More threads than this slow down the small networks of the demo.
THREADS = $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))')
RUN_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-gpu check clean

demo: $(READY)
	$(BIN)/accelerate launch --config_file configs/accelerate/one_process.yaml \
		--num_cpu_threads_per_process $(THREADS) \
		launcher/run.py --config configs/qmix_demo.yaml run.dir=$(RUN_DIR) tracking.wandb=off

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu --numprocesses 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy launcher engine methods data benchmarks

# The stamp is written last, so that a broken installation is taken up again.
$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
