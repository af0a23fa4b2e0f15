# The jobs of CI (.ci/run) as targets: test, packaging, instructions, deny and fuzz. The others are parts of these, or tools.

CARGO ?= cargo
BINARY := target/debug/timbr-gateway

# Arguments of bench/run.py: cases, --rounds, --name, …
BENCH ?=

# Duration of each fuzz target, in seconds.
FUZZ_SECONDS ?= 15
FUZZ_TARGETS ?= bearer policy token config http1 connection statement

.PHONY: test lint unit servers figures e2e readme chart packaging aarch64 image dashboard demo release packages bench micro instructions deny fuzz sbom clean

test: lint unit e2e readme chart dashboard

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

unit: servers
	$(CARGO) test --locked

# Real servers that tests start for themselves.
servers:
	@tests/servers

$(BINARY): FORCE
	$(CARGO) build --locked
FORCE:

# The figures of docs/tokens.md (a million tokens, a rolling restart of a minute), and fifty reloads under load.
figures: servers
	TOKENS=1000000 ROLLING_RESTART_SECONDS=60 RELOADS=50 CARGO_PROFILE_DEV_OPT_LEVEL=3 $(CARGO) test --locked \
	  --target-dir target/figures --test integration -- --nocapture --test-threads 1 figures rolling_restart reloads_under_load

# Timbr's published Python clients, requests and curl, against a Flask backend under gunicorn.
e2e: $(BINARY)
	tests/e2e/run

# The commands of the README and of the guides, run as written. Uses the ports 8080, 8443 and 9180.
readme: $(BINARY)
	python3 tests/readme.py
	python3 tests/guides.py

# The Helm chart, the sidecar and the plain manifests: rendered, validated, and installed against a mock API server.
# BLESS=1 writes the files that are generated from the chart again.
chart: $(BINARY)
	tests/chart/run

# The image, built on substitutes for its base images, and run; the compose file; the systemd units, run by a separate
# systemd; and the files of a release. Needs root, or podman and the other tools installed.
packaging: $(BINARY)
	tests/packaging/run

# The gateway for aarch64 and its packages, tested under qemu-user; not part of the gate.
aarch64:
	tests/aarch64/run

# The image as it is published, on the same substitutes: localhost/timbr-gateway:release.
image:
	tests/packaging/setup
	PROFILE=release tests/packaging/build
	PATH="$$PWD/target/packaging-venv/bin:$$PATH" TIMBR_TEST_IMAGE=localhost/timbr-gateway:release python -m pytest \
	  -c tests/packaging/pytest.ini -s tests/packaging/test_image.py

# The dashboard in headless Chromium. Its screenshots are written to target/dashboard.
dashboard: $(BINARY)
	tests/browser/run

demo:
	$(CARGO) run --locked -- demo

# The program as it is published, with profile-guided optimization. It is written to target/trained/timbr-gateway.
release:
	CARGO="$(CARGO)" deploy/release/build

# The Debian and the RPM package of the release, in target/packages; needs cargo-deb and cargo-generate-rpm.
packages: release
	deploy/release/licences > target/THIRD_PARTY_LICENSES
	deploy/release/packages "$$(deploy/release/archive target/trained/timbr-gateway target/THIRD_PARTY_LICENSES target/packages)" \
	  target/packages

# The release compared with nginx, HAProxy, Envoy and Pingora. The method is in bench/README.md, the results are in bench/results.
bench: release
	bench/setup
	python3 bench/run.py $(BENCH)

# Each step of the path of a request, and the costs of tokens.
micro:
	$(CARGO) bench --locked --profile instructions --bench steps --bench tokens $(if $(STEP),-- $(STEP))

# The instructions per request, compared with those in bench/instructions.json. BLESS=1 records them again.
instructions:
	$(CARGO) build --locked --profile instructions
	python3 bench/instructions.py

# Licences, sources and duplicate versions of the gateway's dependencies (needs cargo-deny).
deny:
	$(CARGO) deny check bans licenses sources

# Each fuzz target for FUZZ_SECONDS, from its seeds and its earlier findings (needs cargo-fuzz).
# Without a sanitizer: the gateway contains no unsafe code, and the C code is not built by this compiler.
fuzz:
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/corpus/$$target; \
	  $(CARGO) fuzz run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -dict=fuzz/http.dict \
	    -print_final_stats=1 -verbosity=0; \
	done

# The components that the gateway contains, as CycloneDX (needs cargo-cyclonedx).
sbom:
	$(CARGO) cyclonedx --format json --target x86_64-unknown-linux-gnu --override-filename sbom.cdx
	@mkdir -p target && sed 's|file://$(CURDIR)|file://timbr-gateway|g' sbom.cdx.json > target/sbom.cdx.json
	@rm sbom.cdx.json

clean:
	$(CARGO) clean
