# What CI runs, as targets for the desk. `make test` is everything; the others are its parts.

CARGO ?= cargo
BINARY := target/debug/timbr-gateway

.PHONY: test lint unit e2e readme demo release deny clean

test: lint unit e2e readme

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

unit:
	$(CARGO) test --locked

$(BINARY): FORCE
	$(CARGO) build --locked
FORCE:

# Timbr's published Python clients, requests and curl, against a Flask backend under gunicorn.
e2e: $(BINARY)
	tests/e2e/run

# The commands of the README, run as they stand there.
readme: $(BINARY)
	python3 tests/readme.py

demo:
	$(CARGO) run --locked -- demo

release:
	$(CARGO) build --locked --release

# Licences, sources and duplicate versions of what the gateway is made of (needs cargo-deny).
deny:
	$(CARGO) deny check bans licenses sources

clean:
	$(CARGO) clean
