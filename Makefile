# Each target makes the virtual environment that it needs; a second run starts at once.
# make PYTHON=python3.13 test chooses another Python (3.11 or later).

PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=

DEV := .venv-dev/bin
DEMO := .venv-demo/bin
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD := setup.py --quiet build_ext --inplace

PACKAGES := $(wildcard dci attention)
LINTED := $(wildcard setup.py dci attention tests comparisons)
SOURCES := $(foreach p,$(PACKAGES),$(wildcard $p/*.py $p/*.pyi $p/py.typed $p/*.pyx $p/*.pxd $p/csrc/*))
STUBBED = $(subst /,.,$(basename $(foreach p,$(PACKAGES),$(wildcard $p/*.pyi))))

.PHONY: demo test lint build types unit serial coverage sanitize bench bench-full clean
.DELETE_ON_ERROR:

demo: $(DEMO)/.installed  ## nearest words in GloVe's vectors, and a real encoder's attention, against exact
	$(DEMO)/python -P -m dci.demo $(DEMO_ARGS)
	$(DEMO)/python -P -m attention.demo $(DEMO_ARGS)

test: lint types unit  ## lint, types, all tests and doctests

lint: $(DEV)/.installed
	$(DEV)/ruff check $(LINTED)
	$(DEV)/ruff format --check $(LINTED)
	PATH="$(DEV):$$PATH" cython-lint $(PACKAGES)

build: $(DEV)/.installed
	$(DEV)/python $(BUILD)

types: build
	$(DEV)/mypy
	$(if $(STUBBED),$(DEV)/stubtest --concise --mypy-config-file pyproject.toml --ignore-missing-stub $(STUBBED))

unit: build
	$(DEV)/pytest $(PYTEST_ARGS)

serial: build  ## all tests without SIMD
	DCI_SIMD=serial $(DEV)/pytest $(PYTEST_ARGS)

coverage: build
	$(DEV)/coverage run -m pytest $(PYTEST_ARGS)
	$(DEV)/coverage report

# The modules built with sanitizers live in build/sanitize, beside the ordinary ones, and are imported from there.
SANITIZED := $(CURDIR)/build/sanitize/lib
SANITIZER_ENV = LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZED)

sanitize: $(DEV)/.installed  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	CC=gcc DCI_SANITIZE=1 $(DEV)/python setup.py --quiet build --build-base build/sanitize --build-lib $(SANITIZED)
	$(SANITIZER_ENV) $(DEV)/python -P -c \
		'import dci._kernels as m; assert m.__file__.startswith("$(SANITIZED)"), m.__file__'
	$(SANITIZER_ENV) $(DEV)/pytest --capture=sys -p no:cacheprovider tests/dci/test_kernels.py $(PYTEST_ARGS)

bench: build  ## every comparison once, on little data: does it run?
	$(DEV)/python -m pytest comparisons --benchmark-only --smoke $(PYTEST_ARGS)

bench-full: build  ## the comparisons that the README quotes
	$(DEV)/python -m pytest comparisons --benchmark-only --benchmark-autosave --results results/full.json $(PYTEST_ARGS); \
	status=$$?; $(DEV)/python -m comparisons report results/full.json && exit $$status

# Development installs are editable, their modules built in place with the pinned tools; the demo's is the ordinary
# isolated build that a user gets.
$(DEV)/.installed: pyproject.toml constraints.txt
	test -x $(@D)/python || $(PYTHON) -m venv $(@D:/bin=)
	$(@D)/python $(PIP_INSTALL) setuptools cython numpy
	DCI_NO_BUILD=1 $(@D)/python $(PIP_INSTALL) --no-build-isolation -e '.[test,lint,comparisons]'
	@touch $@

$(DEMO)/.installed: pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(@D)/python || $(PYTHON) -m venv $(@D:/bin=)
	$(@D)/python $(PIP_INSTALL) '.[demo]'
	@touch $@

clean:
	rm -rf .venv-dev .venv-demo build *.egg-info .coverage .*_cache .hypothesis .benchmarks
	rm -f $(foreach p,$(PACKAGES),$(wildcard $p/*.so))
