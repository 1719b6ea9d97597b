# make         builds ./gateway
# make demo    shows the gateway at work, from a sealed line to a tunnel
# make demo-roaming
#              pulls the network away under a chat that goes on all the same
# make demo-upgrade
#              shows a tunnel that lives while the gateway is replaced three times (Linux)
# make test    runs the tests, all but those of the targets below, and the demos
# make quick   is for the edit loop: vet, and tests with -short, of what has changed
# make cross   vets and builds for every system
# make test-bench
#              tests the benchmark, a module of its own
# make test-peers
#              has nginx and HAProxy read what the gateway tells backends
# make test-browser
#              drives the page of clients/web, and the TypeScript kit, in a headless Chromium
# make test-issuing
#              runs the programs of docs/issuing.md, in every language
# make test-alerts
#              runs the tests of deploy/prometheus by promtool
# make test-ask
#              runs the services of deploy/ask over etcd and Redis
# make test-manifests
#              validates deploy/kubernetes, and deploy/consul where Consul is there
# make test-clients
#              runs the client kits in every language
# make test-packages
#              installs, starts, upgrades and removes the packages; reads the manual page
# make test-image
#              builds the image and runs it (Linux, as root)
# make dist    fills dist/ with the archives of a release
# make packages
#              puts a deb and an rpm for each architecture beside them
# make bench   compares the gateway with HAProxy, nginx and others (Linux; see
#              bench/README.md); make bench-peers installs those
GO          ?= go
VERSION     ?= $(shell git describe --tags --match 'v[0-9]*' --always --dirty 2>/dev/null || echo dev)
COMMIT      ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS     := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
PREFIX      ?= /usr/local
FUZZTIME    ?= 30s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Has the schemas of Kubernetes inside.
KUBECTL_VALIDATE := sigs.k8s.io/kubectl-validate@v0.0.4
# The newest that Go 1.26 builds.
KUSTOMIZE   := sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
# go test with a word on what passes, when it passes.
PROGRESS    := $(CURDIR)/bin/progress $(GO) test -json
# Of all tests of a package. On a busy machine the 10 minutes of go test are few.
TIMEOUT     ?= 30m
# Tests of a package side by side: most of them wait most of the time.
PARALLEL    ?= 6
# Packages that take longest, which begin first: nobody waits for them in the end. The two
# with the most stalled readers are apart: together they use up the kernel's memory for
# TCP (tcp_mem), under whose pressure it drops what it likes.
LONGEST     := ./e2e/process ./clients/suite ./internal/kcp ./e2e/backends . ./e2e/roaming ./e2e/protocols ./e2e/kcp
# The packages that test how bytes are relayed.
RELAYING    := ./e2e/process ./e2e/protocols ./e2e/roaming .
# Folders with a go.mod.
MODULES     := . bench clients/go deploy/ask/go
PLATFORMS   := linux/amd64 linux/arm64 linux/386 darwin/arm64 freebsd/amd64 windows/amd64

.PHONY: all gateway demo demo-roaming demo-upgrade test quick unit cross fuzz lint bench bench-peers progress install clean test-bench test-deps test-peers test-browser test-issuing test-manifests test-alerts

all: gateway

gateway:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ .

demo: gateway
	@$(GO) run ./demo ./gateway

demo-roaming: gateway
	@$(GO) run ./demo/roaming ./gateway

demo-upgrade: gateway
	@$(GO) run ./demo ./gateway upgrade

test: unit demo demo-upgrade

# -count=1: what the tests ask the kernel and openssl is not in Go's cache key. The
# gateway that many of them drive is built once for all. What another target tests is
# left to that.
unit: progress
	$(GO) build -race -o bin/gateway-race .
	LEAVE_TO_TARGETS=1 TEST_GATEWAY_BINARY=$(CURDIR)/bin/gateway-race $(PROGRESS) -vet=off -race -count=1 -parallel $(PARALLEL) -timeout $(TIMEOUT) $(LONGEST) ./...

# The tests of how bytes are relayed, once more with -io-uring=0 for all of them.
test-epoll: progress
	$(GO) build -race -o bin/gateway-race .
	TEST_IO_URING=0 TEST_GATEWAY_BINARY=$(CURDIR)/bin/gateway-race $(PROGRESS) -race -count=1 -parallel $(PARALLEL) -timeout $(TIMEOUT) $(RELAYING)

# What go test knows to have passed before is not run again. -short leaves out what
# storms and waits, and of the ways to relay all but two.
quick: progress
	$(GO) vet ./...
	$(GO) build -o bin/gateway-quick .
	TEST_GATEWAY_BINARY=$(CURDIR)/bin/gateway-quick $(PROGRESS) -vet=off -short -parallel $(PARALLEL) -timeout $(TIMEOUT) $(LONGEST) ./...

test-bench: progress
	cd bench && $(PROGRESS) -race -count=1 -timeout $(TIMEOUT) ./...

progress:
	@$(GO) build -o bin/progress ./internal/progress

# Vet type-checks the tests too.
cross:
	@set -e; for p in $(PLATFORMS); do for m in $(MODULES); do \
		echo "vet and build $$p $$m"; \
		(cd $$m && export GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 && \
			$(GO) vet ./... && $(GO) build -o /dev/null ./...); \
	done; done

# Each fuzz target in turn, FUZZTIME each.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		tests=$$($(GO) test -list '^Fuzz' $$pkg); \
		for f in $$(echo "$$tests" | grep '^Fuzz'); do \
			echo "$$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	@set -e; for m in $(MODULES); do \
		echo "lint $$m"; \
		(cd $$m && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...); \
	done

# BENCHFLAGS are described in bench/README.md and by bin/bench -help.
bench: gateway
	cd bench && CGO_ENABLED=0 $(GO) build -trimpath -o ../bin/bench .
	bin/bench -gateway=./gateway $(BENCHFLAGS)

# The peers of make bench, from the packages of Debian and its relatives. Their
# services are not wanted: none is started, now or at the next boot.
bench-peers:
	@set -e; policy=/usr/sbin/policy-rc.d; \
	for p in haproxy nginx; do command -v $$p >/dev/null || new="$$new $$p"; done; \
	if [ ! -e $$policy ]; then \
		printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; \
		trap "rm -f $$policy" EXIT; \
	fi; \
	apt-get update; \
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy nginx libnginx-mod-stream; \
	for p in $$new; do systemctl disable $$p 2>/dev/null || true; done

install: gateway
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 gateway $(DESTDIR)$(PREFIX)/bin/gateway

# What the tests use beyond Go, git and make, from the packages of Debian and its
# relatives. The race detector takes a C compiler.
test-deps:
	@for c in openssl:openssl systemd-analyze:systemd ip:iproute2 dnsmasq:dnsmasq-base \
		nc:netcat-openbsd python3:python3; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	command -v "$$($(GO) env CC)" >/dev/null || missing="$$missing gcc libc6-dev"; \
	if [ -n "$$missing" ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi

# Real peers behind the gateway, installed where they are missing.
test-peers:
	@command -v haproxy >/dev/null && command -v nginx >/dev/null || $(MAKE) bench-peers
	NEED_PEERS=1 $(GO) test -race -count=1 -timeout 120s -run TestRealServersReadTheHeader ./e2e/protocols

# The alerts of deploy/prometheus, by promtool from the packages of Debian and its
# relatives, without the server that comes with it.
test-alerts:
	@command -v promtool >/dev/null || { \
		apt-get update && dir=$$(mktemp -d) && chmod 755 $$dir && cd $$dir && apt-get download prometheus && \
		dpkg -x prometheus_*.deb . && install -m 755 usr/bin/promtool $(PREFIX)/bin/promtool; rm -rf $$dir; \
	}
	NEED_PROMTOOL=1 $(GO) test -count=1 -run 'Alert|Autoscaler' ./deploy

# The services of deploy/ask over real stores, from the packages of Debian and its
# relatives, which must not start servers of their own.
.PHONY: test-ask
test-ask:
	@for c in etcd:etcd-server redis-server:redis-server python3:python3; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends $$missing; \
		for p in $$missing; do systemctl disable --now $${p%-server} $$p 2>/dev/null || true; done; \
	fi
	cd deploy/ask/go && $(GO) vet ./...
	NEED_ASK=1 $(GO) test -race -count=1 -timeout 300s -run ServicesOfAsk ./deploy

# The page in clients/web, and the kit in clients/typescript, in a browser from the
# packages of Debian and its relatives.
NPM_CACHE   ?= $(HOME)/.cache/gateway-test
AXE         ?= $(NPM_CACHE)/node_modules/axe-core/axe.min.js
test-browser:
	@for c in chromium:chromium tsc:node-typescript; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
	NEED_BROWSER=1 $(GO) test -race -count=1 -timeout 120s ./clients/web
	@[ -e "$(AXE)" ] || { \
		command -v npm >/dev/null || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends npm; }; \
		npm install --no-save --prefix "$(NPM_CACHE)" axe-core@4; \
	}
	NEED_BROWSER=1 AXE="$(AXE)" $(GO) test -race -count=1 -timeout 120s ./internal/admin/page

# The programs of docs/issuing.md against the gateway, in the languages that Debian
# and its relatives have packages for. Where .NET is not among them, Mono will do.
test-issuing:
	@for c in node:nodejs php:php-cli javac:default-jdk-headless openssl:openssl jq:jq; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	[ -e /usr/share/nodejs/jose ] || missing="$$missing node-jose"; \
	/usr/bin/python3 -c 'import cryptography, jwcrypto' 2>/dev/null || \
		missing="$$missing python3-cryptography python3-jwcrypto"; \
	command -v dotnet >/dev/null || command -v mcs >/dev/null || sharp="dotnet-sdk-8.0 mono-mcs"; \
	if [ -n "$$missing$$sharp" ]; then \
		apt-get update; \
		for p in $$sharp; do \
			if apt-cache show $$p >/dev/null 2>&1; then missing="$$missing $$p"; break; fi; \
		done; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
	NEED_RUNTIMES=1 $(GO) test -race -count=1 -timeout 300s -run Issuing ./docs

# The manifests by the schemas of the Kubernetes that they need: as they are, and as
# kustomize builds them with each overlay. The tools take minutes to build, once. Consul comes from nowhere but its vendor; where it is
# installed it judges its definitions, and the demo runs with it.
test-manifests: gateway
	@set -e; dir=bin/overlays; rm -rf $$dir; mkdir -p $$dir/example $$dir/autoscaling; \
	sed 's|\.\./kubernetes$$|../../../deploy/kubernetes|' deploy/kubernetes-example/kustomization.yaml >$$dir/example/kustomization.yaml; \
	echo example >$$dir/example/secret; \
	printf '%s\n' 'resources: [../../../deploy/kubernetes]' 'components: [../../../deploy/kubernetes/autoscaling]' >$$dir/autoscaling/kustomization.yaml; \
	for o in example autoscaling; do $(GO) run $(KUSTOMIZE) build $$dir/$$o >$$dir/$$o.yaml; done; \
	$(GO) run $(KUBECTL_VALIDATE) --version 1.30 deploy/kubernetes/gateway.yaml deploy/kubernetes/game.yaml $$dir/example.yaml $$dir/autoscaling.yaml
	@if command -v consul >/dev/null; then \
		set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
		cp deploy/consul/gateway.json deploy/consul/dns.json "$$dir"; \
		echo '{"data_dir": "/var/empty"}' >"$$dir/data.json"; \
		consul validate "$$dir"; \
		sh deploy/consul/demo.sh ./gateway; \
	else \
		echo "no consul here: deploy/consul is not validated"; \
	fi

# The client kits, in the languages that Debian and its relatives have packages for. The
# KCP of C++ takes ikcp.c, of which npm has a copy.
IKCP        ?= $(NPM_CACHE)/kcp/node_modules/node-kcp/src/kcp
.PHONY: test-clients
test-clients:
	@for c in node:nodejs tsc:node-typescript g++:g++ mcs:mono-mcs mono:mono-runtime javac:default-jdk-headless \
		lua5.1:lua5.1 lua5.4:lua5.4 luajit:luajit python3:python3 godot3-server:godot3-server; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	[ -e /usr/share/lua/5.4/socket.lua ] || missing="$$missing lua-socket"; \
	[ -e "$(IKCP)" ] || command -v npm >/dev/null || missing="$$missing npm"; \
	if [ -n "$$missing" ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
	@[ -e "$(IKCP)" ] || npm install --no-save --ignore-scripts --prefix "$(NPM_CACHE)/kcp" node-kcp@1.0.13
	cd clients/go && $(GO) test -race -count=1 -timeout 900s ./...
	NEED_KITS=1 IKCP="$(IKCP)" $(GO) test -race -count=1 -timeout 900s ./clients/suite

# The files of deploy/package by the tools that read them, from the packages of Debian
# and its relatives.
.PHONY: test-image
test-image:
	@command -v buildah >/dev/null || { \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends buildah; \
	}
	NEED_IMAGE=1 $(GO) test -count=1 -timeout 300s -run 'Image|Dockerfile|Compose' ./deploy

.PHONY: test-packages
test-packages:
	@for c in mandoc:mandoc zsh:zsh fish:fish rpm:rpm unshare:util-linux; do \
		command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
	NEED_PACKAGES=1 $(GO) test -count=1 -timeout 900s -run Package ./deploy

# Archives of a release for all platforms, with SHA256SUMS, the same for all who make them.
.PHONY: dist
dist:
	sh deploy/dist.sh dist '$(VERSION)' '$(or $(COMMIT),HEAD)' $(PLATFORMS)

# The same for all who make them, too.
PACKAGE_ARCHS := amd64 arm64
.PHONY: packages
packages:
	sh deploy/packages.sh dist '$(VERSION)' '$(or $(COMMIT),HEAD)' $(PACKAGE_ARCHS)

clean:
	rm -rf gateway bin dist
