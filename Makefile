# The two commands of the README are `make demo` and `make test`. Everything they need is installed
# into .venv, with the exact files of locked/; a second call installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Nothing is installed but files of which a list has the hash.
PIP := -m pip --quiet --disable-pip-version-check
HASHED := $(PIP) install --require-hashes --no-deps
# The wheel for CPUs, else that of PyPI and, where it is for an accelerator, the libraries it asks for.
TORCH = $(1)/python $(HASHED) --requirement locked/torch-cpu.txt 2>/dev/null || { $(1)/python $(HASHED) --requirement locked/torch.txt && $(1)/python $(PIP) install torch==$$($(1)/python -c 'from importlib.metadata import version; print(version("torch"))'); }
# What PyPI has as source alone, built by the setuptools of that list.
SOURCE := $(HASHED) --no-build-isolation --requirement locked/source.txt
ITSELF := $(PIP) install --no-deps --no-build-isolation --editable .
# Tests run in this many processes, one thread each: one more than the cores of a small machine, since
# many tests wait for a process or a browser of their own.
JOBS ?= 3

.PHONY: help demo test test-all test-integrations browser paper bench bench-peers lint format lesson-data release docs docs-serve clean

help:
	@echo "make demo      set up, train a plain and a residual net, show what differs"
	@echo "make test      set up, check style and types, run the tests"
	@echo "make test COVERAGE=1  the same, and the lines that they run have a floor; what CI does"
	@echo "make test-all  the same with the slow tests"
	@echo "make test-integrations  the callbacks with Lightning, Transformers, skorch and TensorBoard themselves"
	@echo "make bench     run the benchmarks (ratios side by side)"
	@echo "make bench-peers  what recording costs, beside wandb.watch and TorchLens"
	@echo "make lint      check style and types only"
	@echo "make lesson-data  record the networks of the lesson again and write its tables"
	@echo "make release   write the wheel and the list of what it needs (CycloneDX) into dist/"
	@echo "make docs      write the site into site/; a broken link fails"

$(INSTALLED): pyproject.toml $(wildcard locked/*.txt) setup.py $(wildcard analyzer/recording/_*.cpp) analyzer/recording/_scan.h analyzer/joins/_products.cpp
	@echo "--- setting up $(VENV) (once; a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(HASHED) --requirement locked/dev.txt
	$(BIN)/python $(SOURCE)
	$(call TORCH,$(BIN))
	$(BIN)/python $(ITSELF)
	@touch $(INSTALLED)

demo: $(INSTALLED)
	@echo "--- training a plain and a residual net on the digits of scikit-learn"
	$(BIN)/analyzer demo --no-dashboard

lint: $(INSTALLED)
	@echo "--- style and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages are tested in a real browser.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { echo "--- installing chromium"; apt-get -qq update && apt-get -qq install --yes chromium >/dev/null; }

# The figures and tables of papers are tested in a real document.
paper:
	@command -v pdflatex >/dev/null && command -v pdffonts >/dev/null || { echo "--- installing pdflatex and pdffonts"; apt-get -qq update && apt-get -qq install --yes poppler-utils texlive-latex-base texlive-latex-recommended lmodern >/dev/null; }

# With COVERAGE=1 the lines that the tests run are counted, and have a floor; that takes half as long again.
COUNTING := $(if $(COVERAGE),--cov --cov-report=json:.coverage.json)

test: lint browser
	@echo "--- tests"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(JOBS) --dist worksteal $(COUNTING)

# Libraries that would be much to install for every test have an environment of their own.
INTEGRATIONS := .venv-integrations
$(INTEGRATIONS)/.installed: pyproject.toml $(wildcard locked/*.txt)
	@echo "--- setting up $(INTEGRATIONS)"
	$(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python $(HASHED) --requirement locked/dev.txt --requirement locked/integrations.txt
	$(INTEGRATIONS)/bin/python $(SOURCE)
	$(call TORCH,$(INTEGRATIONS)/bin)
	$(INTEGRATIONS)/bin/python $(ITSELF)
	@touch $(INTEGRATIONS)/.installed

test-integrations: $(INTEGRATIONS)/.installed
	@echo "--- integrations"
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/pytest tests/integrations

test-all: lint browser paper test-integrations
	@echo "--- all tests"
	$(BIN)/pytest

PEERS := .venv-peers
$(PEERS)/.installed: pyproject.toml $(wildcard locked/*.txt)
	@echo "--- setting up $(PEERS)"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(HASHED) --requirement locked/dev.txt --requirement locked/peers.txt
	$(PEERS)/bin/python $(SOURCE)
	$(call TORCH,$(PEERS)/bin)
	$(PEERS)/bin/python $(ITSELF)
	@touch $(PEERS)/.installed

bench-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -W ignore benchmarks/overhead.py --peers

bench: $(INSTALLED)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/storage.py
	$(BIN)/python benchmarks/joins.py
	$(BIN)/python benchmarks/paths.py
	$(BIN)/python benchmarks/landscape.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/dashboard.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/verdict_null.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/scale.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The networks of the lesson are recorded in runs/lesson, where they are not there already.
lesson-data: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python docs/lesson_data.py

# The wheel, and what it needs: a CycloneDX list of every package with version, license and origin.
release: $(INSTALLED)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python docs/sbom.py > dist/gradient-flow-analyzer.cdx.json
	@ls dist

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict
	@echo "--- open site/index.html"

docs-serve: $(INSTALLED)
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) $(INTEGRATIONS) $(PEERS) build dist site *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
