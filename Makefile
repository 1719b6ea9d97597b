# make         builds ./gateway
# make demo    shows the gateway at work, from a sealed line to a tunnel
# make test    runs everything that CI runs, but for make lint
GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT      ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS     := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
PREFIX      ?= /usr/local
FUZZTIME    ?= 30s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PLATFORMS   := linux/amd64 linux/arm64 darwin/arm64 freebsd/amd64 windows/amd64

.PHONY: all gateway demo test unit cross fuzz lint install clean test-deps

all: gateway

gateway:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ .

demo: gateway
	@$(GO) run ./demo ./gateway

test: unit cross demo

# -count=1: what the tests ask the kernel and openssl is not in Go's cache key.
unit:
	$(GO) test -race -count=1 ./...

# Vet type-checks the tests too.
cross:
	@set -e; for p in $(PLATFORMS); do \
		echo "vet and build $$p"; \
		GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 $(GO) vet ./...; \
		GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 $(GO) build -o /dev/null .; \
	done

# Each fuzz target in turn, FUZZTIME each.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

install: gateway
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 gateway $(DESTDIR)$(PREFIX)/bin/gateway

# What the tests use beyond Go, git, make and a C compiler, from the packages
# of Debian and its relatives.
test-deps:
	@for c in openssl:openssl systemd-analyze:systemd; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi

clean:
	rm -f gateway
