# make quickstart    set up, make the data, train the four small models, leave a table and images
# make test          set up and run every test
# make test-fast     the same without the slow ones
# make setup         set up what training needs; compiles nothing
# make gpu-check     check and measure a GPU, within 8 minutes: docs/guides/gpu.md
# make lint          check style, format, and types, in an environment of its own that takes seconds to make
# make docs          build the docs as a site in docs/_build/html, in an environment of its own
# make docs-links    check the links of the docs to other sites, which needs a network
# make format        fix style and format
# OPS=compiled       compile mmcv's operators, instead of using torchvision's or PyTorch's: docs/reference/operators.md
# FAMILY=openmmlab   use OpenMMLab's own releases instead of the maintained onedl-* ones
# TESTS=tests/ops    run only these tests
FAMILY ?= onedl
PYTHON ?= python3
TORCH ?= torch==2.13.0
# mmpretrain and timm import torchvision. PyPI's releases that match PyTorch are built for CUDA and cannot be imported
# with a CPU build; 0.16.2 can, without its compiled operators, which neither uses here. With PyTorch for CUDA, choose
# the matching release: TORCHVISION="torchvision==0.28.0" for 2.13.0.
TORCHVISION ?= torchvision==0.16.2; python_version < '3.12'
JOBS ?= 2
OPS ?= python
TESTS ?=

VENV_onedl = .venv
VENV_openmmlab = .venv-openmmlab
# Built in isolation, where there is no PyTorch, mmcv leaves its operators out. pip's cache may hold a compiled one.
MMCV_onedl = --no-cache-dir onedl-mmcv==2.3.6
MMCV_openmmlab = mmcv-lite==2.1.0
COMPILED_MMCV_onedl = onedl-mmcv==2.3.6
COMPILED_MMCV_openmmlab = mmcv==2.1.0
MMPRETRAIN_onedl = onedl-mmpretrain==1.3.6
MMPRETRAIN_openmmlab = mmpretrain==1.2.0
VENV = $(VENV_$(FAMILY))
ifeq ($(VENV),)
$(error FAMILY must be onedl or openmmlab, got '$(FAMILY)')
endif
ifeq ($(filter python compiled,$(OPS)),)
$(error OPS must be python or compiled, got '$(OPS)')
endif
BIN = $(VENV)/bin
LOCK = requirements/$(FAMILY).lock
PIP = $(BIN)/python -m pip install -q -c $(LOCK)
SETUP = $(VENV)/.setup
COMPILED = $(VENV)/.compiled
READY = $(SETUP) $(if $(filter compiled,$(OPS)),$(COMPILED))
TEST_READY = $(VENV)/.tests
LINT = .venv-lint
DOCS = .venv-docs
SPHINX = $(DOCS)/bin/sphinx-build -q -c docs -d docs/_build/doctrees
# One thread per process: the models of the tests are too small for more. The order of tests/conftest.py is kept.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: setup quickstart test test-fast gpu-check lint format docs docs-links clean-quickstart

setup: $(READY)

$(SETUP): requirements/$(FAMILY).txt $(LOCK) pyproject.toml setup.py
	$(PYTHON) -c "import sys; assert sys.version_info[:2] in ((3, 11), (3, 12)), 'the pinned versions need Python 3.11 or 3.12, found ' + sys.version"
	$(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools<81" wheel numpy "$(TORCH)" -r requirements/$(FAMILY).txt
	$(PIP) $(MMCV_$(FAMILY))
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@

# A wheel in pip's cache may be one without operators.
$(COMPILED): $(SETUP)
	@echo "Compiling mmcv's operators, unless pip has cached them: about 12 minutes on 2 cores"
	$(PIP) ninja
	$(BIN)/python -m pip uninstall -q -y mmcv-lite onedl-mmcv mmcv
	MMCV_WITH_OPS=1 $(PIP) --no-build-isolation $(COMPILED_MMCV_$(FAMILY))
	$(BIN)/python -c "import torch, mmcv._ext" || MMCV_WITH_OPS=1 $(PIP) --no-build-isolation --no-deps --force-reinstall --no-cache-dir $(COMPILED_MMCV_$(FAMILY))
	$(BIN)/python -c "import torch, mmcv._ext"
	touch $@

$(TEST_READY): $(SETUP) requirements/tests.txt
	$(PIP) -r requirements/tests.txt $(MMPRETRAIN_$(FAMILY))
	$(PIP) --no-deps "$(TORCHVISION)" timm
	touch $@

quickstart: setup
	$(BIN)/python tools/quickstart.py

test: setup $(TEST_READY)
	$(TEST) $(TESTS)

test-fast: setup $(TEST_READY)
	$(TEST) -m "not slow" $(TESTS)

gpu-check: setup $(TEST_READY)
	$(BIN)/python tools/gpu_check.py --out work_dirs/gpu-check-$$(date +%Y%m%d-%H%M%S)

$(LINT)/.ready: $(LOCK)
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/python -m pip install -q -c $(LOCK) ruff mypy
	touch $@

lint: $(LINT)/.ready
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy

format: $(LINT)/.ready
	$(LINT)/bin/ruff check --fix .
	$(LINT)/bin/ruff format .

$(DOCS)/.ready: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q -r requirements/docs.txt
	touch $@

docs: $(DOCS)/.ready
	$(SPHINX) -W --keep-going -b html . docs/_build/html
	@echo "The docs are in docs/_build/html/index.html"

docs-links: $(DOCS)/.ready
	$(SPHINX) -b linkcheck . docs/_build/links

clean-quickstart:
	rm -rf work_dirs/quickstart data/shapes
