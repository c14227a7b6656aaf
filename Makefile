# make quickstart   set up, make the data, train the four small models, leave a table and images
# make test         set up and run every test
# make test-fast    the same without the slow ones
# make lint         check style, format, and types, in an environment of its own that takes seconds to make
# make format       repair style and format
# FAMILY=openmmlab  use OpenMMLab's own releases instead of the maintained onedl-* ones
FAMILY ?= onedl
PYTHON ?= python3
TORCH ?= torch==2.13.0
# mmpretrain and timm import torchvision. PyPI's releases that match PyTorch are built for CUDA and cannot be imported
# with a CPU build; 0.16.2 can, without its compiled operators, which neither uses here. With PyTorch for CUDA, choose
# the matching release: TORCHVISION="torchvision==0.28.0" for 2.13.0.
TORCHVISION ?= torchvision==0.16.2; python_version < '3.12'
JOBS ?= 2

VENV_onedl = .venv
VENV_openmmlab = .venv-openmmlab
MMCV_onedl = onedl-mmcv==2.3.6
MMCV_openmmlab = mmcv==2.1.0
VENV = $(VENV_$(FAMILY))
MMCV = $(MMCV_$(FAMILY))
ifeq ($(VENV),)
$(error FAMILY must be onedl or openmmlab, got '$(FAMILY)')
endif
BIN = $(VENV)/bin
LOCK = requirements/$(FAMILY).lock
READY = $(VENV)/.ready
LINT = .venv-lint
# One thread per process: the models of the tests are too small for more.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: setup quickstart test test-fast lint format clean-quickstart

setup: $(READY)

$(READY): requirements/$(FAMILY).txt $(LOCK) pyproject.toml setup.py
	$(PYTHON) -c "import sys; assert sys.version_info[:2] in ((3, 11), (3, 12)), 'the pinned versions need Python 3.11 or 3.12, found ' + sys.version"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(LOCK) "setuptools<81" wheel ninja numpy "$(TORCH)"
	@echo "Compiling mmcv's operators, unless pip has cached them: about 12 minutes on 2 cores"
	MMCV_WITH_OPS=1 $(BIN)/python -m pip install -q --no-build-isolation -c $(LOCK) $(MMCV)
	$(BIN)/python -m pip install -q -c $(LOCK) -r requirements/$(FAMILY).txt
	$(BIN)/python -m pip install -q --no-deps -c $(LOCK) "$(TORCHVISION)" timm
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

quickstart: setup
	$(BIN)/python tools/quickstart.py

test: setup
	$(TEST)

test-fast: setup
	$(TEST) -m "not slow"

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

clean-quickstart:
	rm -rf work_dirs/quickstart data/shapes
