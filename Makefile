# The commands of every day. CI runs the same ones.
.PHONY: run build test test-sim test-vm test-mutants fuzz lint generate bench help

# cargo-nextest is faster and isolates each test in a process of its own; plain cargo runs the same tests.
NEXTEST := $(shell cargo nextest --version 2>/dev/null)

help: ## Show this help.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Run examples/hello.yaml with nothing installed: controller, agent and sandbox in one process.
	cargo run -p windlass -- run --local -f examples/hello.yaml

build: ## Build every program.
	cargo build --workspace --bins

# Programs are built with the tests: by themselves their dependencies would be built a second time, with fewer features.
test: ## Run every test.
	cargo build --workspace --bins --tests
ifdef NEXTEST
	cargo nextest run --workspace
else
	cargo test --workspace
endif

# How many simulated fleets `make test-sim` runs, and from which seed on.
SEEDS ?= 1000
FIRST ?= 0

test-sim: ## Run 1,000 simulated fleets (SEEDS=n FIRST=seed for others); `make test` runs the first hundred.
ifdef NEXTEST
	WINDLASS_SIM_SEEDS=$(SEEDS) WINDLASS_SIM_FIRST=$(FIRST) \
		cargo nextest run --profile sim --workspace --test it -E 'package(windlass-tests) and test(/^simulation::/)'
else
	WINDLASS_SIM_SEEDS=$(SEEDS) WINDLASS_SIM_FIRST=$(FIRST) cargo test -p windlass-tests --test it simulation::
endif

test-vm: ## Boot a machine with systemd and cgroup v2, and run the sandbox's suites and `windlass doctor` in it.
	tests/vm/run

test-mutants: ## Break the code in kept ways and require that a test catches each (MUTANTS='name …' for some).
	tests/mutants/run $(MUTANTS)

fuzz: ## Fuzz what reads manifests, images, requests and rules, two minutes each (TARGETS='name …' SECONDS_EACH=n RUNS=n).
	tests/fuzz/run $(TARGETS)

lint: ## Check format, lints and documentation.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null

generate: ## Write the files that are made from others: CRDs, JSON Schemas, the OpenAPI document, the chart's table of values.
	cargo run --bin windlass-generate -- crds
	cargo run --example openapi -- controller/openapi.json
	cargo run --example chart_readme -- charts/windlass

bench: ## Measure what this project promises, beside its peers (ARGS=--full for long, ARGS='--row p5' for one row).
	cargo build --release -p windlass -p windlass-bench
	target/release/windlass-bench $(ARGS)
