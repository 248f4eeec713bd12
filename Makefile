# make demo      sample data -> pre-train -> evaluate -> runs/demo/report.html
# make check     lint, types and the quick tests: before each commit
# make test      lint, types and all tests
# make test-cuda the tests that need a CUDA device, on it; all others never touch one
# make docs      the documentation site, built strictly into site/
# make matrix    unit tests with oldest, pinned and newest versions, for each Python (tools/matrix.py --help)
# make release   wheel and source distribution in dist/, installed into an empty environment (tools/release.py)
# The first five set up .venv first; all need Python 3.11 or newer, git and make.

PYTHON ?= python3
READY := .venv/ready
TUBELET := .venv/bin/tubelet
DEMO_DATA := runs/sample
# A learning rate and a teacher that suit a run of minutes: higher rates, or a teacher that follows faster, collapse.
DEMO := --model vit-pico --image-size 64 --frames 4 --fps 7 --batch-size 8 --checkpoint-every 250 \
        --lr 5e-4 --start-lr 5e-5 --final-lr 1e-4 --warmup-fraction 0.1 --ema 0.99 --final-ema 0.998

# Bytecode is kept whatever the environment says: dozens of processes would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-cuda lint types quick tests docs matrix release clean

# pip first: the one that comes with Python 3.11 chooses versions at a third of the speed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tubelet needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(TUBELET) sample-data $(DEMO_DATA) --clips 1000 --seed 0
	$(TUBELET) train $(DEMO_DATA)/train --out runs/demo --resume --steps 2500 $(DEMO)
	$(TUBELET) evaluate runs/demo --data $(DEMO_DATA)
	$(TUBELET) report runs/demo --data $(DEMO_DATA)

check: $(READY)
	@$(MAKE) --no-print-directory --jobs 3 lint types quick

# Side by side: each prints a line or stops with what is wrong, and the tests report as they go.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs 3 lint types tests

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(READY)
	.venv/bin/mypy

quick: $(READY)
	.venv/bin/python -m pytest -n auto --dist worksteal -m "not slow" tests/unit tests/numerics tests/fuzz

tests: $(READY)
	.venv/bin/python -m pytest -n auto --dist worksteal

# One process: tests side by side would measure, and fill, the same device.
test-cuda: $(READY)
	TUBELET_TEST_CUDA=1 .venv/bin/python -m pytest -m gpu -n 0 -rs

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

matrix:
	$(PYTHON) tools/matrix.py

release:
	$(PYTHON) tools/release.py

clean:
	rm -rf .venv .venv-matrix build dist runs site
