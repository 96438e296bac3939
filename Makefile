# Two commands do everything: `make demo` and `make test`. They need Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow check lint format bench clean

demo: .venv/installed          ## does a semi-supervised method help on digits? One run answers
	$(BIN)/tune-ssl compare supervised logistic_regression label_spreading fixmatch

test: .venv/installed          ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/installed          ## clusters, killed processes, a soak of TUNE_SSL_SOAK_MINUTES (2)
	$(BIN)/python -m pytest -m slow

lint: .venv/installed          ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test slow          ## all that CI asks

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed         ## measure steps, what a trial costs beyond training, reports, drivers and nodes
	$(BIN)/python -m benchmarks.step_efficiency
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.trial_overhead
	$(BIN)/python -m benchmarks.report_scale
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.driver_cost 100 1000
	$(BIN)/python -m benchmarks.slot_share search search_spaces/simclr.yaml
	$(BIN)/python -m benchmarks.two_nodes
	$(BIN)/python -m benchmarks.growing_cluster

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
