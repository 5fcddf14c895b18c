# Galley. `make demo` is the tour, `make test` is everything that CI runs.

GO ?= go
BIN := bin/galley

.DEFAULT_GOAL := build
.PHONY: build demo test check lint fuzz bench soak clean help

help: ## what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: ## build bin/galley, and bin/galley-guest, the agent in virtual machines
	$(GO) build -trimpath -o $(BIN) ./cmd/galley
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/galley-guest ./cmd/galley-guest

demo: ## install what is missing, build, and show the tour on a copy of this source
	scripts/demo.sh

test: ## all checks and all tests, as root (if root) and as an ordinary user
	scripts/test.sh

check: ## format, vet, lint, import direction, forbidden calls
	scripts/check.sh

fuzz: ## every fuzz target for FUZZTIME (default 10s) each
	scripts/fuzz.sh

bench: ## measure side by side and write docs/performance.md (BENCH_SCALE=small for a quick look)
	scripts/bench.sh

soak: ## the long tests: SOAK (default 1h) of the random model test
	scripts/soak.sh

clean: ## remove what the other targets made
	rm -rf bin
