# Needs make and Python 3.11 or newer, and nothing else: `make help` says what there is.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# The first of these that is new enough; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
LOCK := UV_CUSTOM_COMPILE_COMMAND='make lock' $(VENV)/bin/uv pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help demo test unit integration check format lock generate jars tools image pictures bench-smoke clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: jars ## broker, simulator, service and a scenario of about a minute, told line by line
	@$(PY) -m vpp_dispatch.demo.scenario

test: jars tools ## all tests, on a real Kafka
	$(PY) -m pytest -n 2 --dist worksteal tests

unit: $(READY) ## the tests without a broker, in seconds; the exhaustive ones run with `make test`
	$(PY) -m pytest -n auto -m "not exhaustive" tests/unit tests/contract

integration: jars ## the tests with a broker
	$(PY) -m pytest tests --ignore tests/unit --ignore tests/contract --ignore tests/deploy

check: tools ## lint, format, types, import layers, schemas; chart, dashboards, alerts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m vpp_dispatch.operators.messages --check
	$(PY) -m pytest -n 2 tests/deploy

format: $(READY) ## lay out the code and mend what ruff can mend
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

generate: $(READY) ## write what is written from the code: schemas, references, dashboards, the chart's copies
	$(PY) -m vpp_dispatch.operators.messages --write
	$(PY) -m vpp_dispatch.goodwe.profile > schemas/goodwe-profile.v1.json
	$(PY) -m vpp_dispatch.settings --write
	$(PY) -m vpp_dispatch.observability.metrics --write
	$(PY) -m vpp_dispatch.cli.reference --write
	$(PY) -m deploy.grafana.generate --write
	$(PY) deploy/tools/chart.py --write

lock: $(READY) ## choose newer versions within pyproject.toml's bounds; commit what changes
	$(LOCK) pyproject.toml --upgrade --extra tracing -o requirements.lock
	$(LOCK) pyproject.toml --upgrade --all-extras -c requirements.lock -o requirements-dev.lock
	$(LOCK) deploy/image/sbom.in -c requirements-dev.lock -o deploy/image/sbom.lock

image: ## the container image, by Docker, Podman or buildah, whichever is there (docs/image.md)
	@deploy/image/build.sh

bench-smoke: jars ## how fast fleets of 10,000 and 100,000 are set, about ten minutes (docs/performance.md); ARGS=--write keeps it
	@$(PY) -m benchmarks.smoke $(ARGS)

tools: $(READY) ## helm, kubectl and Prometheus' own programs, for the checks of helm/ and deploy/
	@$(PY) deploy/tools/fetch.py

pictures: jars tools ## the dashboards' pictures in docs/, drawn anew from a run of the demo, about three minutes
	@$(PY) -m deploy.grafana.record

jars: $(READY)
	@$(PY) -m vpp_dispatch.demo.jars

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv comes from the lock by pip, everything else from the lock by uv: all of it checked against hashes. A later call costs nothing.
$(READY): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. Install one (Debian: apt install \
	python3 python3-venv; macOS: brew install python), or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment. \
	Install its venv module (Debian: apt install python3-venv) and try again." >&2; exit 1; }
	@echo "Fetching the locked packages (about 120 MB the first time) ..."
	@sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.lock > $(VENV)/uv.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock \
	&& $(VENV)/bin/uv pip sync --quiet --python $(PY) --require-hashes requirements-dev.lock \
	&& $(VENV)/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --offline -e . \
	|| { echo "The packages could not be installed; the lines above say why. Without a connection to the Python package \
	index (a proxy goes into HTTPS_PROXY, a mirror into PIP_INDEX_URL and UV_INDEX_URL) this cannot work; then try again." >&2; exit 1; }
	@touch $@
