# Everything a checkout needs, from `make` and a Python >= 3.11 alone. All tools live in .venv.
# The steps themselves stand in cmd/check/__main__.py, so that CI and a developer run the same.

# The first of these that is there, starts (a pyenv shim may not) and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { command -v $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv test test-system check tla-check tla-trace java dnsmasq faketime radosgw simulate mutants demo demo-cluster soak steady bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv with everything that tests and tools need

# Only pyproject.toml says what is installed, so only its change installs again.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; install python3.11 or run: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

test: $(STAMP)  ## the gate: format, lint, types, contracts and the default tests
	$(RUN) cmd/check

test-system: $(STAMP) java dnsmasq radosgw  ## the slower tests with real processes and servers
	$(RUN) cmd/check system

check: $(STAMP)  ## the gate without its tests: seconds
	$(RUN) cmd/check format lint types contracts

tla-check: $(STAMP) java  ## every model of docs/specs, those that must fail included: about an hour
	$(RUN) -m basenet.testing.specs deep

tla-trace: $(STAMP) java  ## simulated runs of both modes against docs/specs, and of broken engines
	$(RUN) -m basenet.testing.specs traces

# TLC is a Java program. Nothing but the specification needs it.
java:  ## install Java where there is none (Debian, Ubuntu; as root or by sudo)
	@command -v java >/dev/null 2>&1 || { \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as_root apt-get update -qq \
		&& $$as_root apt-get install -qq --yes --no-install-recommends default-jre-headless; \
	} || { echo "make: Java is missing and apt-get could not install it; install a Java of 11 or newer" >&2; exit 1; }

# A DNS server of our own, for tests with records that change.
dnsmasq:  ## install dnsmasq where there is none (Debian, Ubuntu; as root or by sudo)
	@PATH="$$PATH:/usr/sbin" command -v dnsmasq >/dev/null 2>&1 || { \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as_root apt-get update -qq \
		&& $$as_root apt-get install -qq --yes --no-install-recommends dnsmasq-base; \
	} || { echo "make: dnsmasq is missing and apt-get could not install it; install dnsmasq-base" >&2; exit 1; }

# Steps the wall clock of one node of a soak; every other clock is left alone.
faketime:  ## install libfaketime where there is none (Debian, Ubuntu; as root or by sudo)
	@command -v faketime >/dev/null 2>&1 || { \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as_root apt-get update -qq \
		&& $$as_root apt-get install -qq --yes --no-install-recommends faketime; \
	} || { echo "make: faketime is missing and apt-get could not install it; install faketime" >&2; exit 1; }

# A real S3 server, 250 MB of packages; `basenet.testing.radosgw` starts it without root.
radosgw:  ## install Ceph's S3 server where there is none (Debian, Ubuntu; as root or by sudo)
	@command -v radosgw >/dev/null 2>&1 && command -v ceph-osd >/dev/null 2>&1 \
	&& command -v ceph-mon >/dev/null 2>&1 || { \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as_root apt-get update -qq \
		&& $$as_root apt-get install -qq --yes --no-install-recommends \
			ceph-mon ceph-osd ceph-common radosgw; \
	} || { echo "make: radosgw is missing and apt-get could not install it; install ceph-mon, ceph-osd, ceph-common and radosgw" >&2; exit 1; }

simulate: $(STAMP)  ## 2,000 seeds of every configuration of the consensus engine: more than an hour
	$(RUN) cmd/basenet-sim --suite --seeds 2000 --jobs 2

mutants: $(STAMP)  ## engines with one thing left out: each must be noticed by the simulator
	$(RUN) cmd/basenet-sim --mutants --jobs 2

demo: $(STAMP)  ## kill writer and daemon in mid-write, restore, compare: under two minutes
	$(RUN) cmd/basenet-demo

demo-cluster: $(STAMP)  ## three nodes, the death of the writer's, failover, return: under two minutes
	$(RUN) cmd/basenet-cluster-demo

# make soak MINUTES=5 SEED=1 BYZANTINE=1
# Disks that fill up need root, to mount a tmpfs for each node; without it that fault is left out.
MINUTES := 30
soak: $(STAMP) faketime  ## clusters under load and random faults, judged from outside: half an hour
	$(RUN) cmd/basenet-soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(BYZANTINE),--byzantine)

steady: $(STAMP)  ## every operation at many paces of an application that never rests: an hour
	$(RUN) -m basenet.testing.steadyload

bench: $(STAMP)  ## basenet and litestream beside the same writer, as a table of ratios
	$(RUN) cmd/basenet-bench

clean:  ## remove .venv, caches and build products
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	find basenet cmd tests -type d -name __pycache__ -prune -exec rm -rf {} +
