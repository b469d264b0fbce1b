# Two environments: .venv runs the tool, .venv-test adds what the tests need.
PYTHON ?= python3
# `test` skips the comparisons with torch; `dev` installs it too.
TEST_EXTRA ?= test
# Most of a test is compiling, which takes one core.
TEST_WORKERS ?= 2
LOCK = requirements.lock

.SECONDARY:
.PHONY: install demo test reliability lint lock clean

install: .venv/installed

.venv/installed: setup.py $(LOCK)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c $(LOCK) -e .
	touch $@

demo: install
	.venv/bin/python -m langmerge_jax.experiment --config=configs/demo.py --workdir=runs/demo

.venv-test/installed-%: setup.py $(LOCK)
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --disable-pip-version-check -c $(LOCK) -e '.[$*]'
	touch $@

# Files in their order: by number of tests, those that take longest would come last, on one core.
test: .venv-test/installed-$(TEST_EXTRA)
	.venv-test/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# Kills small experiments at every moment, four of them; about twenty minutes.
reliability: .venv-test/installed-test
	.venv-test/bin/python -m benchmarks.reliability

lint: .venv-test/installed-dev
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .

# Writes $(LOCK) anew; needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --extra test -c requirements.in setup.py -o $(LOCK)

clean:
	rm -rf .venv .venv-test runs
