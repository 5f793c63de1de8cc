# OpenQueue. `make help` lists what there is.

TERN = github.com/jackc/tern/v2@v2.4.2
PSQL ?= psql

.DEFAULT_GOAL := help
.PHONY: help run demo test test-all-versions test-versions lint bench bench-depth soak migrate build snapshot fmt tools go

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

go:
	@command -v go >/dev/null || { echo 'OpenQueue is built with Go: see https://go.dev/doc/install' >&2; exit 1; }

run: build ## the main job from nothing: a server (or DATABASE_URL), the queue, the daemon
	@OQ_LOG_FORMAT=$${OQ_LOG_FORMAT:-console}; export OQ_LOG_FORMAT; exec bin/openqueued dev

demo: go ## thousands of real files through Go and bash workers, one of them killed
	go run ./clients/demo

build: go ## bin/openqueued
	@mkdir -p bin
	go build -buildvcs=false -o bin/openqueued ./daemon/openqueued

migrate: go ## install or upgrade the queue in DATABASE_URL by tern
	@test -n "$$DATABASE_URL" || { echo 'set DATABASE_URL' >&2; exit 2; }
	TERN_CONFIG=tern.conf TERN_MIGRATIONS=sql/migrations go run $(TERN) migrate

# What depends on the server runs on the oldest and the newest supported one as well.
SERVER_TESTS = ./tests/sql ./tests/catalog ./tests/concurrency ./tests/plans ./tests/upgrade ./tests/watches
VERSIONS = 14 15 16 17 18

# Our own Go is raced. These wait more than they work, so two packages run at a time, the longest first.
RACED_TESTS = ./tests/contract ./clients/... ./daemon/... ./tests/bench

test: go tools lint ## everything CI runs; brings its own PostgreSQL
	CGO_ENABLED=1 go test -race -timeout 15m -p 2 $(RACED_TESTS)
	go test -timeout 15m -p 1 $$(go list ./sql ./tests/... | grep -vE '/tests/(contract|bench)$$')
	@$(MAKE) --no-print-directory test-versions VERSIONS='14 18' TESTS='$(SERVER_TESTS)'

test-all-versions: go tools ## every test on PostgreSQL 14 to 18
	@$(MAKE) --no-print-directory test-versions TESTS=./...

TESTS = ./...
test-versions:
	@failed=; for major in $(VERSIONS); do \
	    begun=$$(date +%s); echo "PostgreSQL $$major"; \
	    if OQ_TEST_PG_MAJOR=$$major go test -timeout 15m -p 1 $(TESTS); \
	    then said=passed; else said=FAILED; failed=1; fi; \
	    lines="$$lines\nPostgreSQL $$major $$said in $$(($$(date +%s) - begun)) s"; \
	done; printf "$$lines\n"; test -z "$$failed"

lint: go ## formatting, vet, and the snapshot of the code
	@test -z "$$(gofmt -l daemon clients tests sql)" || { gofmt -l daemon clients tests sql; exit 1; }
	go vet ./...
	@diff -r sql/code sql/migrations/snapshots/002 >/dev/null || \
	    { echo 'sql/migrations/snapshots/002 differs from sql/code: make snapshot' >&2; exit 1; }

bench: go ## the benchmark; BENCH=B4 picks a row (tests/bench/README.md)
	go run ./tests/bench

bench-depth: go ## millions of jobs, many queues, large payloads: does anything slow down?
	go run ./tests/bench -depth

soak: go ## SOAK_MINUTES (20) of steady load: does anything grow?
	go run ./tests/bench -soak

snapshot: ## before the first release: what migration 002 installs is sql/code
	rm -rf sql/migrations/snapshots/002
	cp -r sql/code sql/migrations/snapshots/002

fmt: go ## gofmt
	gofmt -w daemon clients tests sql

# What the tests need beside Go: psql, a C compiler for the race detector, and plpgsql_check where
# Debian's PostgreSQL serves them.
tools: go
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then tests/tools.sh; fi
	@command -v psql >/dev/null || { echo 'the tests need psql, the client of PostgreSQL' >&2; exit 1; }
	@command -v "$$(go env CC)" >/dev/null || \
	    { echo 'the tests need a C compiler, for the race detector' >&2; exit 1; }
