PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: pong demo test lint site tsan soak clean

pong: $(VENV)/.installed  ## train Pong
	$(BIN)/python train.py --env=Pong

DEMO_ENV ?= Pong
DEMO_FLAGS ?=
demo: $(VENV)/.installed  ## train for five minutes, and make a page of it: films, curve, machine
	$(BIN)/python -m sfrl demo --env=$(DEMO_ENV) $(DEMO_FLAGS)

# Compiled once: where PYTHONDONTWRITEBYTECODE is set, each process of the tests would do it anew.
# Two at a time, since tests wait much; those of a file one after the other, with its fixtures.
test: $(VENV)/.installed-dev lint  ## the whole test suite
	$(BIN)/python -m compileall -q sfrl envs
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

$(VENV)/.installed: requirements.txt pyproject.toml setup.py $(wildcard sfrl/*/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sfrl needs Python 3.11 or newer")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

site: $(VENV)/.installed-dev  ## docs/ as a site: build/site/index.html; a warning is an error
	$(BIN)/zensical build --strict --clean

# Twice: TSan sees what is not ordered, but its own work hides a lost wake-up, which -O2 shows.
tsan:  ## the lock-free queue's C++ core under ThreadSanitizer
	mkdir -p build
	$(CXX) -std=c++17 -O1 -g -Wall -Wextra -Werror -fsanitize=thread -pthread \
		sfrl/ipc/csrc/stress.cpp -o build/stress-tsan
	TSAN_OPTIONS=halt_on_error=1 build/stress-tsan
	$(CXX) -std=c++17 -O2 -pthread sfrl/ipc/csrc/stress.cpp -o build/stress
	build/stress

soak: $(VENV)/.installed-dev  ## an hour of training with random kills: nothing may grow or get lost
	$(BIN)/python -m benchmarks.soak

clean:
	rm -rf $(VENV) build *.egg-info
