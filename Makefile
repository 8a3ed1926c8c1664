# Two commands: `make train` runs the main job, `make test` passes the tests. Both set up .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
RUN    := runs/first_$(shell date +%H-%M-%S)
PY     := $(VENV)/bin/python

.PHONY: help setup train test check test-long clean

help:
	@echo "make train      set up, train PPO on CartPole, evaluate it, show where the results lie (about a minute)"
	@echo "make test       set up, lint, type-check, and run the fast tests"
	@echo "make test-long  the tests that take minutes"
	@echo "make check      lint and types only"

# The constraints pin what was tested together; torch's pin also picks a CPU build where pip finds one.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/.installed

train: setup
	$(PY) train.py task=CartPole train=PPO max_frames=200_000 run_dir=$(RUN)
	$(PY) train.py test=True checkpoint=$(RUN)/nn/best.pth player.games_num=100 video=True
	@echo; echo "Everything about this run lies in $(RUN) (see docs/runs.md). Next: docs/new_algorithm.md"

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: check
	$(PY) -m pytest -n 2 --dist loadfile

test-long: setup
	$(PY) -m pytest -m long

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
