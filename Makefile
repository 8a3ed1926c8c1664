# Two commands: `make train` runs the main job, `make test` passes the tests. Both set up .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
SIMS   := .venv-sims
RUN    := runs/first_$(shell date +%H-%M-%S)
PY     := $(VENV)/bin/python

.PHONY: help setup train test check test-long test-sims clean

help:
	@echo "make train      set up, train PPO on CartPole, evaluate it, show where the results lie (about a minute)"
	@echo "make test       set up, lint, type-check, and run the fast tests"
	@echo "make test-long  the tests that take minutes"
	@echo "make test-sims  the tests of MuJoCo Warp, mjlab, Brax and ManiSkill, with what they install (gigabytes, minutes)"
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

# The simulators that pip brings, in an environment of their own: mjlab wants an older rich than we do.
$(SIMS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SIMS)
	grep -v '^rich==' constraints.txt > $(SIMS)/constraints.txt
	$(SIMS)/bin/python -m pip install --quiet --constraint $(SIMS)/constraints.txt torch
	$(SIMS)/bin/python -m pip install --quiet --constraint $(SIMS)/constraints.txt --editable '.[dev,warp,mjlab,brax,maniskill]'
	@touch $@

# One process for each of these: JAX, once imported, does not go together with processes that are forked.
test-sims: $(SIMS)/.installed
	$(SIMS)/bin/python -m pytest -m '' tests/test_tasks_maniskill.py tests/test_tasks_stand_ins.py
	$(SIMS)/bin/python -m pytest -m '' tests/test_tasks_warp.py tests/test_tasks_mjlab.py tests/test_tasks_brax.py
	$(SIMS)/bin/python -m pytest tests/test_pretend_gpu.py -k 'warp or mjlab or brax'
	$(SIMS)/bin/python -m pytest -m long tests/test_tasks_kinds.py -k 'warp or mjlab or brax'
	$(SIMS)/bin/python -m pytest tests/test_tasks_contract.py -k 'every_yaml'

clean:
	rm -rf $(VENV) $(SIMS) .pytest_cache .ruff_cache .mypy_cache
