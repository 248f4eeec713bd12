# make demo   sample data -> pre-train -> evaluate -> runs/demo/report.html
# make test   lint, types and all tests
# Both set up .venv first; they need Python 3.11 or newer, git and make.

PYTHON ?= python3
READY := .venv/ready
TUBELET := .venv/bin/tubelet
DEMO_DATA := runs/sample
DEMO_MODEL := --image-size 64 --patch-size 8 --frames 8 --fps 7

.PHONY: demo demo-long test clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tubelet needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(TUBELET) sample-data $(DEMO_DATA) --clips 1000 --seed 0
	$(TUBELET) train $(DEMO_DATA)/train --out runs/demo --resume $(DEMO_MODEL)
	$(TUBELET) evaluate runs/demo --data $(DEMO_DATA)
	$(TUBELET) report runs/demo --data $(DEMO_DATA)

test: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

clean:
	rm -rf .venv runs
