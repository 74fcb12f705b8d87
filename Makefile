# make build   bin/orlop, one static binary
# make demo    back up a real volume, change it, go back: the main job, shown
# make test    every test there is; finds a Docker engine or starts its own
# make lint    vet, staticcheck, gofumpt; that it builds for other hosts

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
TOOL    := go tool -modfile=tools/go.mod

.PHONY: build demo test lint

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w$(if $(VERSION), -X main.version=$(VERSION))' -o bin/orlop ./cmd/orlop

demo: build
	scripts/engine run scripts/demo

# The tag brings in the tests that need an engine. They fail without one.
test:
	scripts/need gcc=gcc ssh=openssh-client unshare=util-linux
	ORLOP_ENGINE=required scripts/engine run go test -race -tags engine -timeout 30m ./...

lint:
	GOOS=darwin GOARCH=arm64 go build ./...
	GOARCH=arm64 go build ./...
	go vet -tags engine ./...
	$(TOOL) staticcheck -tags engine ./...
	@unformatted=$$($(TOOL) gofumpt -l .); test -z "$$unformatted" || { echo "gofumpt would change:"; echo "$$unformatted"; exit 1; }
