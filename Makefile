# Two commands do everything: `make demo` shows the gateway at work, `make test` proves it.
# `make faults` proves the rest of it, which takes longer: what breaks around the gateway, at full size.

.PHONY: demo test faults check bench tools servers

# Builds and starts the simulator and the gateway on embedded defaults, and prints the story to paste.
demo: tools
	cargo build --bins
	@deploy/demo.sh

# Installs what the tests need and runs all of them, those under faults at a size that fits.
test: tools servers
	cargo test
	@echo 'Left to `make faults`: load under faults for 120 s (here 15), 500 timed logouts held to p99 < 50 ms (here 40, p90 < 250 ms), 5000 model cases (here 800).'

# Every suite of faults at full size. Ends with one line of what was measured.
faults: tools servers
	@tests/faults.sh

# What CI runs before the tests: form, lints, and every shipped configuration.
check: tools
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo build --bins
	for file in config/gateway.yaml config/demo.yaml; do target/debug/emporix-gateway check-config --config $$file || exit; done

# Micro benches of the hot path's steps.
bench: tools
	cargo bench

# What the tests need beside the program.
servers:
	@command -v redis-server >/dev/null && command -v curl >/dev/null || $(APT) redis-server curl

# What the build itself needs beside the Rust toolchain.
tools:
	@command -v cmake >/dev/null && command -v cc >/dev/null || $(APT) cmake gcc g++

APT = DEBIAN_FRONTEND=noninteractive sh -c '[ "$$(id -u)" = 0 ] && s= || s=sudo; $$s apt-get update -qq && $$s apt-get install -y -qq --no-install-recommends "$$@"' apt
