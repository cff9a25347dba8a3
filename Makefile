# Every target makes the environment it needs, once, and reuses it.
#
#   make demo                    the main job on a rendered route; minutes, no data needed
#   make test                    the fast tests; also test-slow, test-browser, test-s3, test-gpu, bench,
#                                bench-gpu, lint, docs, image
#   make test VENV=~/venvs/x     any target with an environment that lies elsewhere
#   make test PYTHON=python3.12  another interpreter for a new environment
#   make test CONSTRAINTS=       the newest libraries instead of the tested ones

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
DEMO ?= demo
PROCESSES ?= 3

# Works from the checkout, whatever checkout the environment was installed from.
RUN = $(VENV)/bin/python -m
INSTALL = $(RUN) pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
OLD = driving-xai needs Python 3.11 or newer: make PYTHON=python3.11

.PHONY: help demo test test-slow test-browser test-s3 test-gpu bench bench-gpu lint docs image

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.driving-xai
	$(RUN) driving_xai demo --out $(DEMO)

# One thread in each process is faster than two threads in one; some tests wait for processes of their own, so that
# three keep two cores busy.
test: $(VENV)/.driving-xai-test
	OMP_NUM_THREADS=1 $(RUN) pytest -q --numprocesses $(PROCESSES) --dist loadfile

test-slow: $(VENV)/.driving-xai-test
	$(RUN) pytest -q -m slow --timeout 1200

test-browser: $(VENV)/.driving-xai-test
	$(RUN) pytest -q -m browser

# An environment of its own: s3fs and moto want an older python-dateutil than constraints.txt has.
test-s3: $(VENV)-s3/.driving-xai-test
	OMP_NUM_THREADS=1 $(VENV)-s3/bin/python -m pytest -q -m 'slow or not slow' --timeout 1200 tests/data_prep/test_places.py tests/driving_xai/test_places.py

test-gpu: $(VENV)/.driving-xai-test
	$(RUN) pytest -q -m gpu

bench: $(VENV)/.driving-xai-test
	$(RUN) pytest -q -m bench --timeout 1200

bench-gpu: $(VENV)/.driving-xai-test
	$(RUN) tests.benchmarks.bench_gpu

lint: $(VENV)/.driving-xai-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/hadolint Dockerfile

docs: $(VENV)/.driving-xai-docs
	$(RUN) mkdocs build --strict --config-file docs/site/mkdocs.yml

image:
	docker build --tag driving-xai .

# The stamps are inside the environment: removing it removes them.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("$(OLD)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.driving-xai: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.driving-xai-test: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[test]'
	touch $(VENV)/.driving-xai $@

$(VENV)/.driving-xai-dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $(VENV)/.driving-xai $@

$(VENV)/.driving-xai-docs: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[docs]'
	touch $(VENV)/.driving-xai $@

$(VENV)-s3/.driving-xai-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-s3
	grep -v '^python-dateutil==' constraints.txt > $(VENV)-s3/constraints.txt
	$(VENV)-s3/bin/python -m pip install --quiet --constraint $(VENV)-s3/constraints.txt --editable '.[test,test-s3]'
	touch $@
