# Everything here works in a fresh clone, may be repeated, and writes only below this folder.
#
#   make demo [PORT=8000] [GOSCOPE_URL=mongodb://...]    the shop, served from a private mongod or from yours
#   make test [ARGS="-k lock"]                           everything, on the python3 that is on PATH
#   make lint                                            ruff and mypy
#   make test-matrix                                     the quick tests on every supported Python x Django found
#   make bench                                           ratios against raw PyMongo and the peers
#   make clean                                           removes what the above made

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
# Without it the demo goes by .env, else by a private mongod in the folder demo-data.
ifneq ($(GOSCOPE_URL),)
export GOSCOPE_URL
endif
WORKERS ?= auto
ARGS ?=

PY := $(VENV)/bin/python
# An editable install of a package that lies at the top of its repository makes setuptools warn at length.
PIP := PYTHONWARNINGS=ignore $(PY) -m pip --quiet --disable-pip-version-check
TEST_EXTRAS := test,embedded,demo,health,prometheus
PACKAGING := setup.py pyproject.toml goscope_django/__init__.py

.PHONY: demo test lint format test-matrix bench clean help
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

# Neither filling the SQL database nor its tables need the store: only the server starts it.
demo: $(VENV)/.installed-demo
	@GOSCOPE_CONNECT_ON_READY=false $(PY) manage.py migrate --skip-checks --verbosity 0
	@GOSCOPE_CONNECT_ON_READY=false $(PY) manage.py demo_data
	@echo "Serving the demo at http://127.0.0.1:$(PORT)/ (Ctrl-C ends it)"
	@GOSCOPE_FAIL_FAST=true DJANGO_RUNSERVER_HIDE_WARNING=true exec $(PY) manage.py runserver --noreload 127.0.0.1:$(PORT)

test: $(VENV)/.installed-test
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --require-mongo $(ARGS)

lint: $(VENV)/.installed-test
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(VENV)/.installed-test
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# Django 6.0 and later need Python 3.12.
MATRIX ?= 3.11-5.2 3.12-5.2 3.12-6.0 3.12-6.1 3.13-5.2 3.13-6.0 3.13-6.1
QUICK := --ignore=tests/fleet --ignore=tests/dashboard --ignore=tests/packaging -m "not fleet and not slow"

# A Python is looked for under pyenv first: its shims answer to python3.12 even when that version is not switched on.
test-matrix:
	@mkdir -p .matrix; table=.matrix/table; : > $$table; failed=0; \
	for combo in $(MATRIX); do \
		py=$${combo%-*}; dj=$${combo#*-}; env=.matrix/$$combo; log=$$env.log; python=; \
		for candidate in "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$py.*/bin/python "$$(command -v python$$py)"; do \
			if [ -x "$$candidate" ] && "$$candidate" -c '' 2>/dev/null; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then printf '%-8s%-8s%s\n' $$py $$dj "not run: no Python $$py here" >> $$table; continue; fi; \
		echo "Python $$py, Django $$dj ..."; \
		if [ ! -e $$env/.installed ] || [ setup.py -nt $$env/.installed ]; then \
			"$$python" -m venv $$env && $$env/bin/python -m pip --quiet --disable-pip-version-check install --editable '.[$(TEST_EXTRAS)]' "Django~=$$dj.0" > $$log 2>&1 \
				&& touch $$env/.installed || { printf '%-8s%-8s%s\n' $$py $$dj "FAILED to install, see $$log" >> $$table; failed=1; continue; }; \
		fi; \
		if $$env/bin/python -m pytest -q -n $(WORKERS) --dist loadfile $(QUICK) $(ARGS) > $$log 2>&1; then word=ok; else word="FAILED, see $$log:"; failed=1; fi; \
		printf '%-8s%-8s%s %s\n' $$py $$dj "$$word" "$$(tail -n 1 $$log | tr -d '=')" >> $$table; \
	done; \
	printf '\n%-8s%-8s%s\n' Python Django Result; cat $$table; exit $$failed

bench: $(VENV)/.installed-test
	@$(PY) -m benchmarks $(ARGS)

clean:
	@if [ -x $(PY) ] && [ -d demo-data ]; then $(PY) manage.py goscope_mongod stop >/dev/null 2>&1 || true; fi
	@rm -rf $(VENV) .matrix .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info demo-data demo.sqlite3*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
