# Everything a developer or a newcomer runs. `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
, := ,
UV := $(BIN)/uv
DATA ?=
YES ?=
ENGINE ?= $(shell for engine in docker podman; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done)
IMAGE ?= igneous-airflow-worker:$(shell sed -nE 's/^version = "(.*)"/\1/p' pyproject.toml)

.PHONY: help install demo airflow env test golden e2e check format bench picture docs docs-links screenshots lock image image-test test-browser smoke

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s '	'

install: .venv/installed ## make .venv with the igneous-airflow command in it

# uv is one of the locked packages: pip installs it first, it installs the rest in seconds
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -nE 's/^(uv==[0-9.]+).*/\1/p' requirements.lock)"
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: install ## give a sample dataset mips and meshes by real Airflow DAG runs (DATA=path: your layer; YES=1: replace mips that are there)
	$(BIN)/igneous-airflow demo $(DATA) $(if $(YES),--yes)

airflow: install ## start Airflow with the project's DAGs and print its address
	$(BIN)/igneous-airflow airflow

# random, 48 bytes each; the Fernet key has 32
env: ## make .env, with new secrets for docker compose
	@test -e .env || (umask 077; $(PYTHON) -c 'import base64, os, sys; \
	random = lambda name: base64.urlsafe_b64encode(os.urandom(32 if "FERNET" in name else 48)).decode(); \
	lines = open(".env.example").read().splitlines(); \
	print("\n".join(l + random(l) if l.endswith("=") else l for l in lines))' > .env)

# two files at once: they wait longer than they work
e2e: install ## run DAGs over REST with the services of docker-compose.yml as processes
	[ "$$(id -u)" != 0 ] || tests/e2e/install_services.sh
	$(BIN)/python -m pytest -m services -n 2 --dist loadfile --durations 10 tests/e2e

# in the order of their folders, so that the longest files do not come last, one by one
test: install ## run the whole test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 25

golden: install ## compare what every stage makes with tests/golden/record.json (UPDATE=1 writes it; CASES=names)
	$(BIN)/python tests/golden/golden.py $(if $(UPDATE),--update) $(CASES)

test-browser: install ## try page, forms and viewer in a real browser, which must be there: chromium
	@command -v chromium chromium-browser >/dev/null || { echo "Chromium is needed: apt-get install" \
		"--no-install-recommends chromium fonts-dejavu-core libgl1-mesa-dri libegl1"; exit 1; }
	$(BIN)/python -m pytest -m browser tests/browser
	@echo "What was seen is in .browser/"

SMOKE := test_form.py::test_a_run_is_triggered_with_two_fields_and_turns_green test_viewer.py::test_an_image_is_drawn

smoke: install ## trigger a run in a real browser and look at a layer, in two minutes
	[ "$$(id -u)" != 0 ] || tests/browser/install_chromium.sh
	$(BIN)/python -m pytest -m browser $(addprefix tests/browser/,$(SMOKE))

check: install ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## mend the format and what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## measure against Igneous, side by side
	$(BIN)/python -m benchmarks

picture: install ## draw the README's picture from the demo's layers
	$(BIN)/igneous-airflow picture .demo/layers/image .demo/layers/segmentation --mips 4 --out docs/layers.png

docs: install ## build the documentation; a broken link between its pages is an error
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --write-all --quiet docs .docs/html
	@echo "The documentation is in .docs/html/index.html"

docs-links: install ## ask every address that the documentation names whether it is there
	$(BIN)/sphinx-build --builder linkcheck --quiet docs .docs/links

screenshots: install ## do the tutorial in a browser, and make its pictures anew (CHROMIUM=path)
	PYTHONPATH=tests/browser $(BIN)/python docs/screenshots.py docs/images

# For a package index of one's own: SSL_CERT_FILE and UV_DEFAULT_INDEX pass into the build as secrets.
# BUILDAH_FORMAT lets podman keep the health check.
image: ## build the worker image with docker or podman (IMAGE=name:tag)
	test -n "$(ENGINE)" || { echo "docker or podman is needed"; exit 1; }
	BUILDAH_FORMAT=docker $(ENGINE) build --file worker_image/Dockerfile --tag "$(IMAGE)" \
		--build-arg VERSION="$(lastword $(subst :, ,$(IMAGE)))" --build-arg REVISION="$$(git rev-parse HEAD)" \
		$(if $(SSL_CERT_FILE),--secret id=ca$(,)src="$(SSL_CERT_FILE)") \
		$(if $(UV_DEFAULT_INDEX),--secret id=index$(,)env=UV_DEFAULT_INDEX) $(BUILD_FLAGS) .
	$(ENGINE) image inspect --format 'The image {{index .RepoTags 0}} has {{.Size}} bytes' "$(IMAGE)"

image-test: install ## build the worker image, without a registry if need be, and work with it
	ENGINE="$(ENGINE)" IMAGE="$(IMAGE)" sh tests/image/rehearse.sh

lock: ## resolve the dependencies anew
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		--quiet --output-file requirements.lock
