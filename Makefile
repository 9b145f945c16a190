# Every target works in a fresh clone, may be repeated, and writes only below this folder.
#
#   make demo [PORT=8000] [GOSCOPE_URL=mongodb://...]    a shop that uses every feature, on a private mongod or on yours
#   make test [ARGS="-k lock"]                           all tests, with the python3 on PATH
#   make test-long                                       with every input, not only some of each kind
#   make test-mongodb [ARGS=...]                         the tests of projects whose own database is MongoDB
#   make lint                                            ruff and mypy
#   make test-matrix                                     the quick tests on every supported Python and Django
#   make docs                                            the site, in docs/_build/html; a warning is an error
#   make release-check                                   builds what is published and installs it on every Python found
#   make bench                                           ratios against raw PyMongo and the peers
#   make soak [SEED=1] [SECONDS=600]                     bad days: planted documents, 24 hours in short, the consistency harness
#   make clean                                           removes what the other targets made

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
# Without GOSCOPE_URL the demo reads .env; without that it starts a private mongod in the folder demo-data.
ifneq ($(GOSCOPE_URL),)
export GOSCOPE_URL
endif
# Two more than there are cores: many tests wait for something.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)
ARGS ?=
SECONDS ?= 600

PY := $(VENV)/bin/python
# An editable install of a package that lies at the top of its repository makes setuptools warn at length.
PIP := PYTHONWARNINGS=ignore $(PY) -m pip --quiet --disable-pip-version-check
MONGODB_VENV ?= .venv-mongodb
PY_MONGODB := $(MONGODB_VENV)/bin/python
DOCS_VENV ?= .venv-docs
PY_DOCS := $(DOCS_VENV)/bin/python
# What touches the project's own database: tests marked "sql" are skipped there.
ON_MONGODB := tests/mongodb_backend $(wildcard tests/integration/sessions) tests/integration/fencing \
	tests/integration/checkpoints/test_checkpoints_database.py tests/integration/checkpoints/test_checkpoints_exact.py \
	tests/integration/settings/test_settings_django_url.py tests/integration/idempotency/test_idempotency_atomic.py \
	tests/integration/idempotency/test_idempotency_atomic_unknown.py tests/fleet/test_exactly_once.py \
	tests/integration/idempotency/test_idempotency_commits.py tests/integration/idempotency/test_idempotency_rest.py \
	tests/integration/idempotency/test_idempotency_views.py tests/integration/locks/test_locks_decorators.py \
	tests/unit/single_flight/test_single_flight_transactions.py \
	$(addprefix tests/dashboard/test_,acting.py hostile.py page.py sites.py walk.py)
TEST_EXTRAS := test,embedded,demo,health,prometheus
PACKAGING := setup.py pyproject.toml goscope_django/__init__.py

.PHONY: docs release-check demo test test-long test-mongodb lint format test-matrix bench soak clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Say PYTHON=python3.12, for example." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed-demo: $(PACKAGING) | $(PY)
	@echo "Installing the demo into $(VENV) ..."
	@$(PIP) install --editable '.[demo]'
	@touch $@

$(VENV)/.installed-test: $(PACKAGING) | $(PY)
	@echo "Installing the test environment into $(VENV) ..."
	@$(PIP) install --editable '.[$(TEST_EXTRAS)]'
	@touch $@ $(VENV)/.installed-demo

# Making and filling the SQL tables needs no MongoDB; only the server starts it.
demo: $(VENV)/.installed-demo
	@GOSCOPE_CONNECT_ON_READY=false $(PY) manage.py migrate --skip-checks --verbosity 0
	@GOSCOPE_CONNECT_ON_READY=false $(PY) manage.py demo_data
	@echo "Serving the demo at http://127.0.0.1:$(PORT)/ (Ctrl-C ends it)"
	@DEMO_PARENT=$$PPID GOSCOPE_FAIL_FAST=true DJANGO_RUNSERVER_HIDE_WARNING=true exec $(PY) manage.py runserver --noreload 127.0.0.1:$(PORT)

test: $(VENV)/.installed-test
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --require-mongo $(ARGS)

test-long: export GOSCOPE_LONG = 1
test-long: test

# An environment of its own, since django-mongodb-backend pins Django.
test-mongodb: | $(PY_MONGODB)
	@[ $(MONGODB_VENV)/.installed -nt setup.py ] || { echo "Installing the test environment into $(MONGODB_VENV) ..."; \
		PYTHONWARNINGS=ignore $(PY_MONGODB) -m pip --quiet --disable-pip-version-check install --editable '.[test-mongodb]' \
		&& touch $(MONGODB_VENV)/.installed; }
	@$(PY_MONGODB) -m pytest -n $(WORKERS) --dist loadfile --require-mongo --ds=tests.settings_mongodb $(ON_MONGODB) $(ARGS)

$(PY_MONGODB):
	@$(PYTHON) -m venv $(MONGODB_VENV)

docs: | $(PY_DOCS)
	@[ $(DOCS_VENV)/.installed -nt setup.py ] || { echo "Installing what builds the documentation into $(DOCS_VENV) ..."; \
		PYTHONWARNINGS=ignore $(PY_DOCS) -m pip --quiet --disable-pip-version-check install --editable '.[docs]' \
		&& touch $(DOCS_VENV)/.installed; }
	@$(PY_DOCS) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "The site is in docs/_build/html"

$(PY_DOCS):
	@$(PYTHON) -m venv $(DOCS_VENV)

release-check: $(VENV)/.installed-test
	@$(PY) scripts/release_check.py

lint: $(VENV)/.installed-test
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(VENV)/.installed-test
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# MATRIX="3.12-6.0 3.13-6.1" runs these alone.
test-matrix:
	@$(PYTHON) scripts/test_matrix.py --workers $(WORKERS) $(if $(MATRIX),--only $(MATRIX)) -- $(ARGS)

bench: $(VENV)/.installed-test
	@$(PY) -m benchmarks $(ARGS)

soak: $(VENV)/.installed-test
	@$(PY) -m tests.soak.planted $(if $(SEED),--seed $(SEED)) $(ARGS)
	@$(PY) -m tests.soak.day
	@$(PY) -m tests.soak.staleness $(if $(SEED),--seed $(SEED))
	@$(PY) -m tests.consistency.unconfirmed
	@$(PY) -m tests.consistency.sweep
	@$(PY) -m tests.consistency --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

clean:
	@if [ -x $(PY) ] && [ -d demo-data ]; then $(PY) manage.py goscope_mongod stop >/dev/null 2>&1 || true; fi
	@rm -rf $(VENV) $(MONGODB_VENV) $(DOCS_VENV) docs/_build .matrix .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info demo-data demo.sqlite3*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
