# make demo   sample data -> pre-train -> evaluate -> runs/demo/report.html
# make test   lint, types and all tests
# make test-oldest, make test-newest   unit tests with the oldest and the newest releases that pyproject.toml allows
# The first two set up .venv first; all need Python 3.11 or newer, git and make.

PYTHON ?= python3
READY := .venv/ready
TUBELET := .venv/bin/tubelet
DEMO_DATA := runs/sample
# A learning rate and a teacher that suit a run of minutes: higher rates, or a teacher that follows faster, collapse.
DEMO := --model vit-pico --image-size 64 --frames 4 --fps 7 --batch-size 8 --checkpoint-every 250 \
        --lr 5e-4 --start-lr 5e-5 --final-lr 1e-4 --warmup-fraction 0.1 --ema 0.99 --final-ema 0.998

.PHONY: demo demo-long test lint types tests test-oldest test-newest clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tubelet needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(TUBELET) sample-data $(DEMO_DATA) --clips 1000 --seed 0
	$(TUBELET) train $(DEMO_DATA)/train --out runs/demo --resume --steps 2500 $(DEMO)
	$(TUBELET) evaluate runs/demo --data $(DEMO_DATA)
	$(TUBELET) report runs/demo --data $(DEMO_DATA)

# Side by side: each prints a line or stops with what is wrong, and the tests report as they go.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs 3 lint types tests

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(READY)
	.venv/bin/mypy

tests: $(READY)
	.venv/bin/python -m pytest -n auto --dist worksteal

# Environments of their own, so that .venv stays what constraints.txt says. The oldest linters and trackeval, which needs
# a newer numpy, are left out.
test-oldest: EXTRAS := sample,fp8,lora,export,s3,test
test-oldest: LIMITS := -c constraints-oldest.txt
test-oldest: LEFT_OUT := --ignore tests/unit/test_jandf.py
test-newest: EXTRAS := dev
test-oldest test-newest:
	$(PYTHON) -m venv --clear .venv-$@
	.venv-$@/bin/pip install --quiet --disable-pip-version-check $(LIMITS) '.[$(EXTRAS)]'
	.venv-$@/bin/python -m pytest $(LEFT_OUT) tests/unit

clean:
	rm -rf .venv .venv-test-oldest .venv-test-newest runs
