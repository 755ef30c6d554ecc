# Two commands, each of which works first and alone in a fresh clone: `make demo` and `make test`.
# TORCH is what pip installs as PyTorch. For the small CPU build where the default would fetch the CUDA one:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

TORCH ?= torch==2.13.0
VENV ?= .venv
# Test processes; one thread each, since the models of the tests are small.
JOBS ?= auto
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python3.10,\
	$(if $(shell $(p) -c 'import sys; print(int((3, 10) <= sys.version_info < (3, 14)) or "")' 2>/dev/null),$(p))))

native_sources := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')
run := $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint native sanitize tiles races clean

demo: $(VENV)/.ready
	$(run) examples/demo.py

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 ANTIPHON_CPU_THREADS=1 $(run) -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.ready
	$(VENV)/bin/pip install --quiet ruff
	$(VENV)/bin/ruff check .

# Rebuild only the compiled operators.
native: $(VENV)/.ready

# $(call variant,FOLDER,FLAGS): a copy of the package in FOLDER/package whose compiled operators were built with FLAGS.
define variant
$(run) -m pip install --quiet pybind11 cmake ninja
PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B $(1) -G Ninja $(2) \
	-DPython_EXECUTABLE="$(CURDIR)/$(run)" -Dpybind11_DIR="$$($(run) -m pybind11 --cmakedir)"
PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build $(1)
rm -rf $(1)/package && cp -r kernels $(1)/package
cp $(1)/_native*.so $(1)/package/antiphon_kernels/
endef
comma := ,
# Where the CPU has no tiles of its own but AVX512-BF16, what is written for them is tested on emulated ones
# (csrc/cpu/emulated_tiles.h); on others those tests are skipped.
emulate := $(shell grep -qw amx_tile /proc/cpuinfo 2>/dev/null && echo OFF || echo ON)

# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer, every instruction set, on a copy of the package.
# On two CPUs building takes two minutes or three and testing up to eight. -g1 is what a stack trace with line numbers needs.
sanitizer := build/sanitize
sanitize: $(VENV)/.ready
	$(call variant,$(sanitizer),-DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DANTIPHON_SANITIZE=address$(comma)undefined \
		-DANTIPHON_EMULATE_TILES=$(emulate))
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so):$$(c++ -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=1 \
		PYTHONPATH="$(CURDIR)/$(sanitizer)/package" $(run) -m pytest -n $(JOBS) --dist worksteal tests/native

# The native tests of AMX's kernels on emulated tiles, without sanitizers: a minute to build, half a minute to test. With
# `tests=...` others: pytest's arguments, in place of these.
tiles := build/tiles
tests := tests/native -k amx
tiles: $(VENV)/.ready
	$(call variant,$(tiles),-DANTIPHON_EMULATE_TILES=ON)
	PYTHONPATH="$(CURDIR)/$(tiles)/package" OMP_NUM_THREADS=1 ANTIPHON_CPU_THREADS=1 \
		$(run) -m pytest -n $(JOBS) --dist worksteal $(tests)

# Passes whose threads have rows of their own, and steps with prompts, under ThreadSanitizer: four minutes. By hand, after changes
# to them: it cannot run on every kernel.
racing := build/races
races: $(VENV)/.ready
	$(call variant,$(racing),-DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" -DANTIPHON_SANITIZE=thread)
	LD_PRELOAD="$$(c++ -print-file-name=libtsan.so)" OMP_NUM_THREADS=1 \
		TSAN_OPTIONS="suppressions=$(CURDIR)/tests/native/races.supp exitcode=66" \
		PYTHONPATH="$(CURDIR)/$(racing)/package" $(run) -m pytest -q tests/native/test_flow_pass.py \
		tests/native/test_encoder_pass.py tests/native/test_model_step.py \
		-k "panels or silence or fills or (prompts and (avx2 or bf16) and not audio)"

$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "Antiphon needs Python 3.10 to 3.13; none is on PATH (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(run) -m pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml setup.py CMakeLists.txt $(native_sources)
	$(run) -m pip install --quiet -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build demo_out
