# The front door. `make run` and `make test` need a Debian or Ubuntu and Rust, and see to the rest.

# The Postgres to build for: 15 to 18. By default the one that is here, or that apt offers.
PG ?= $(shell scripts/pg-version.sh)
PG_CONFIG ?= /usr/lib/postgresql/$(PG)/bin/pg_config
export PG PG_CONFIG
export PGRX_PG_CONFIG_PATH = $(PG_CONFIG)

# Which end-to-end tests to run: a part of their names. And the seconds to fuzz each target.
T ?=
SECONDS_TO_FUZZ ?= 60

.PHONY: help setup build install run test test-pure test-e2e soak deb test-deb test-upgrade test-readme lint bench fuzz clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Install what is missing to build and run (apt; asks sudo when not root)
	@scripts/setup.sh build

build: setup ## Build the extension, optimised
	cargo build --release -p pg_tide -p tide-server --features pg_tide/pg$(PG)

install: build ## Put the extension where Postgres looks for it
	@scripts/install.sh

run: install ## Start a private Postgres with a demo table and the page, until Ctrl-C
	@scripts/run.sh

test: ## Run all tests; PG=17 or PG=18 on another Postgres, in a folder of its own
	@scripts/test.sh

test-pure: ## Run only the tests that need no Postgres
	cargo test -p tide-feed -p tide-server

test-e2e: install ## Run only the end-to-end tests; T=kill for some of them
	@scripts/setup.sh test
	cargo test -p tide-tests --features e2e --test e2e -- $(T)

deb: ## Make a Debian package in target/deb; PG=17 or PG=18 for another Postgres
	@scripts/deb.sh

test-deb: deb ## Install the package in a bare Debian, use it and remove it
	@scripts/setup.sh test-deb
	@scripts/deb-test.sh

test-upgrade: ## Upgrade a cluster from Postgres 17 to 18 by pg_upgrade, in a bare Debian
	@for pg in 17 18; do env -u PG_CONFIG $(MAKE) --no-print-directory deb PG=$$pg || exit; done
	@scripts/setup.sh test-deb
	@scripts/upgrade-test.sh

test-readme: ## Follow the README in a bare Debian with Node 20
	@scripts/readme-test.sh

soak: install ## Run in full what `make test` runs a tenth of: hours
	@scripts/setup.sh test
	TIDE_POSITION_ROUNDS=200 TIDE_KILL_ROUNDS=500 TIDE_SEEDS=5000 TIDE_SETTINGS=each TIDE_SYNC_ROWS=1000000 \
		TIDE_MUTATION_KILLS=100 TIDE_CONVERGENCE_SEEDS=300 \
		cargo test -p tide-tests --features e2e --test e2e -- rounds:: kill:: oracle:: settings_walk:: sync:: mutation_kill:: convergence::

lint: setup ## Check formats, lints and documentation
	@scripts/lint.sh

bench: install ## Measure, beside other ways to do the same; see pgrx-tests/bench/README.md
	@scripts/setup.sh bench
	cargo bench -p tide-tests --features e2e --bench tide

fuzz: ## Fuzz the parsers; needs cargo-fuzz
	@scripts/fuzz.sh $(SECONDS_TO_FUZZ)

clean: ## Remove everything that was built or run under target/
	@scripts/clean.sh
