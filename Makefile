# make build   bin/orlop, one static binary
# make demo    back up a real volume, change it, go back: the main job, shown
# make test    every test there is; finds a Docker engine or starts its own
# make bench   measure it beside others, ARGS="-quick" for a look (docs/performance.md)
# make bench-stages   bytes a second and allocations of each hot stage, by itself
# make lint    vet, staticcheck, gofumpt; that it builds for other hosts

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
TOOL    := go tool -modfile=tools/go.mod

.PHONY: build demo test lint bench bench-stages bench-setup

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

# Built and not "go run": that would be gone before what it runs has cleaned up.
bench: build
	go build -o bin/bench ./bench
	scripts/engine run bin/bench $(ARGS)

# Cut, name, compress, seal, pack, index lookup and insert, tree build and walk, frames.
bench-stages:
	go test -run '^$$' -benchmem -bench '^Benchmark(Next|Cuts|Name|Finish|Decode|SealBox|OpenBox|Pack|Lookup|Insert|BuildAMillion|WalkAMillion|Frames)$$' $(ARGS) ./chunk ./id ./box ./seal ./pack ./index ./snapshot ./agent

# The peers that Debian has, and what makes the corpora. kopia is at https://kopia.io.
bench-setup:
	scripts/need restic=restic borg=borgbackup zstd=zstd gzip=gzip pg_ctlcluster=postgresql mkfs.ext4=e2fsprogs
