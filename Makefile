# Two commands for a newcomer: `make demo` and `make test`. Both set everything up by themselves.
# What is built lands in target/ and build/; what the two start lives below build/ and is gone afterwards.

TARGET  := target/x86_64-unknown-linux-gnu/release
KERNEL  := build/deps/kernel
# The second is there if it is the pinned one (scripts/setup).
FIRMWARE = build/deps/firmware/usr/share/ovmf/OVMF.fd $(wildcard build/deps/firmware-amdsev/usr/share/ovmf/OVMF.amdsev.fd)
GUEST   := build/guest
PREFIX  := /usr/local
comma   := ,
# containerd, mounts and the network of a VM need root; building does not.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=HOME$(comma)CARGO_HOME$(comma)RUST_BACKTRACE$(comma)RUST_TEST_THREADS)

.DEFAULT_GOAL := help
.PHONY: help setup build guest demo nerdctl test bench soak lint clean install

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install the tools and unpack the packages that demo and test need (Debian 12, 13)
	@scripts/setup

build: setup ## Build every binary: shim, cloister, agent, tests' harness
	cargo build --release --locked --workspace

guest: build ## Build the guest image (kernel and initramfs) into build/guest
	@mkdir -p $(GUEST)
	$(TARGET)/cloister guest build --kernel $(KERNEL) --agent $(TARGET)/cloister-agent \
		$(addprefix --firmware ,$(FIRMWARE)) --out $(GUEST)

demo: guest ## The main job, told step by step: an encrypted image runs in an attested VM
	@$(AS_ROOT) $(TARGET)/demo

test: guest nerdctl ## All tests: unit, end to end, dependencies; ends with a count
	@AS_ROOT="$(AS_ROOT)" scripts/run-tests

nerdctl: setup ## Build nerdctl below build/deps, for its tests (once)
	@scripts/setup-nerdctl

bench: guest ## Measure start-up, memory and sizes (table and JSON in build/bench), the image path, the broker
	@$(AS_ROOT) $(TARGET)/bench
	$(if $(AS_ROOT),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(AS_ROOT)") cargo bench --locked --workspace --bench pipeline
	@cargo test --release --locked --quiet --workspace --lib benchmark -- --ignored --nocapture --test-threads 1 2>&1 | sed -n 's/^test .*\.\.\. //; /µs/p'

soak: guest ## 200 sandboxes in sequence, many side by side, 500 execs, a GiB of output, kill -9 at every call (an hour)
	@$(AS_ROOT) $(TARGET)/soak

lint: setup ## Formatting, clippy, shell scripts
	cargo fmt --all --check
	scripts/check-shell
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

install: guest ## Install the binaries and the guest image below PREFIX (/usr/local)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(TARGET)/containerd-shim-cloister-v2 $(TARGET)/cloister
	install -D -m 0644 -t $(DESTDIR)/usr/lib/cloister $(GUEST)/*

clean: ## Remove what was built (and build/deps with it)
	cargo clean
	rm -rf build
