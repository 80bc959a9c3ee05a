# Everything a developer does here, by name. `make` alone lists it.
# Needs make, a POSIX shell and Python 3.11 or newer; everything else goes into .venv.

.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin

# Tests run in random order from one seed, which is printed; SEED= repeats a run.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
# One process more than cores, as many tests wait, but no more than four: each starts the real servers that its
# tests need. JOBS=0 uses one.
JOBS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# A test that hangs ends the run with every thread's stack instead of holding it up.
# Compiled tests are kept, whatever the environment says: each process would take 10 s to compile them.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(JOBS) --maxprocesses=4 --dist=worksteal \
	--randomly-seed=$(SEED) --hypothesis-seed=$(SEED) \
	-o faulthandler_timeout=120 -o faulthandler_exit_on_timeout=true $(ARGS)

.PHONY: help
help: ## List these targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

##@ Use
.PHONY: setup run demo
setup: ## Create .venv and install the sidecar into it; PYTHON= chooses the interpreter
	@scripts/setup.sh runtime

run: setup ## Start the sidecar with a demo registry; Ctrl-C stops it
	@exec $(BIN)/sidecar serve --demo

.PHONY: dashboard-picture
dashboard-picture: setup-tests ## Draw docs/operate/dashboard.svg from six minutes of a real, scraped sidecar
	$(BIN)/python -m deploy.demo.dashboard $(ARGS)

PROXY := envoy
demo: setup-dev ## Watch a real proxy enforce keys, scopes, addresses and limits; PROXY=nginx, caddy, haproxy
	@exec $(BIN)/python -m deploy.demo $(PROXY)

##@ Test
.PHONY: setup-dev setup-tests setup-bench
setup-dev:
	@scripts/setup.sh dev

setup-tests:
	@scripts/system-packages.sh
	@scripts/setup.sh dev
	@scripts/grpcurl.sh

setup-bench: setup-tests
	@scripts/setup.sh bench

.PHONY: test test-unit test-property test-model test-conformance test-fault test-e2e test-house
test: setup-tests ## Run every test; SEED= repeats an order, JOBS= says on how many processes, ARGS= goes to pytest
	$(PYTEST) tests

test-unit: setup-tests ## Run the unit tests
test-property: setup-tests ## Run the property tests
test-model: setup-tests ## Run the model tests
test-conformance: setup-tests ## Run the wire tests of both transports, with real clients
test-fault: setup-tests ## Run the fault tests: floods, slow peers, dead stores
test-e2e: setup-tests ## Run the end-to-end tests, with a real Envoy
test-house: setup-tests ## Run the tests of the code's own rules
test-unit test-property test-model test-conformance test-fault test-e2e test-house:
	$(PYTEST) tests/$(@:test-%=%)

COMPILED_TESTS = $(addprefix tests/,$(addprefix unit/,domain observe services stores transports) property model \
	$(addprefix conformance/,store transport))

.PHONY: test-compiled
test-compiled: BIN := .venv-compiled/bin
test-compiled: setup-tests compiled ## Run the tests of the hot path on the compiled build; `make test` does not run these
	PYTHONSAFEPATH=1 $(PYTEST) --import-mode=append -m "not pure" $(COMPILED_TESTS)

.PHONY: bench
bench: setup-bench ## Measure, print the tables and write docs/develop/benchmarks.md
	$(BIN)/python -m loadtest.bench $(ARGS)

.PHONY: measure-simulate
measure-simulate: setup-tests ## Replay a decision log of a million rows (ROWS=N for another number)
	$(BIN)/python -m tests.measure.simulate $(ROWS)

.PHONY: measure-activity
measure-activity: setup-tests ## Ask what stands out in 90 days of counts (KEYS=N keys of each kind an hour)
	$(BIN)/python -m tests.measure.activity $(KEYS)

SCENARIO := steady
.PHONY: loadtest
loadtest: setup-tests ## Send load and check every answer; SCENARIO=steady or a file, ARGS='--target ADDRESS'
	$(BIN)/python -m loadtest run $(SCENARIO) $(ARGS)

.PHONY: decision-log-scale
decision-log-scale: setup-tests ## Measure filters of a decision log of 50 million rows (ROWS=N for another number)
	$(BIN)/python -m tests.measure.decision_log $(ROWS)

##@ Prove
# On servers that they start themselves; docs/develop/proofs.md has the figures.
.PHONY: verify-limits revocation failover hostile-peers soak upgrade-proof container-proof
verify-limits: setup-tests ## Prove the limits of a fleet; ARGS= are those of `sidecar verify-limits`
	$(BIN)/python -m loadtest.verify_limits $(ARGS)

revocation: setup-tests ## Suspend 1,000 times under load: nobody is let in after the commit
	$(BIN)/python -m loadtest run revocation $(ARGS)

failover: setup-tests ## Replace primaries under load, and see what clients see and what becomes of suspensions
	$(BIN)/python -m loadtest run failover-sentinel failover-cluster failover-suspend $(ARGS)

hostile-peers: setup-tests ## Attack the listeners of real sidecars: decisions, memory and administrators are safe
	$(BIN)/python -m loadtest.hostile_peers $(ARGS)

soak: setup-tests ## Run a sidecar at half its load for ten minutes: memory and descriptors stay flat
	$(BIN)/python -m loadtest run soak $(ARGS)

upgrade-proof: setup-tests ## Upgrade from a former build and roll back, under load; COMMIT= chooses the build
	$(BIN)/python -m tests.upgrade $(COMMIT)

container-proof: setup-dev ## Build the image with buildah and run it, without a registry; needs root
	@scripts/container-proof.sh

##@ Develop
.PHONY: fmt lint type check proto proto-check lock wheel compiled clean
fmt: setup-dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: setup-dev ## Look for faults and for unformatted code (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup-dev ## Check the types (mypy, strict)
	$(BIN)/mypy
	$(BIN)/mypy -p deploy.demo

check: lint type proto-check test-house ## Everything that looks at the code without running it

proto: setup-dev ## Generate the code of proto/ again
	$(BIN)/python proto/generate.py

proto-check: setup-dev ## Fail when the generated code is not what proto/ says
	$(BIN)/python proto/generate.py --check

lock: setup ## Pin the dependencies of pyproject.toml; ARGS=--upgrade takes newer ones
	@scripts/lock.sh $(ARGS)

wheel: compiled ## Build both wheels into dist: the pure one for every machine, and the compiled one for this kind
	@rm -rf build/lib build/bdist*
	@mkdir -p dist && cp build/wheel/*.whl dist
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

compiled: setup-dev ## Compile the hot path with mypyc, into .venv-compiled; needs a C compiler
	@scripts/compiled.sh

clean: ## Remove .venv and everything that was built
	rm -rf .venv .venv-compiled build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
