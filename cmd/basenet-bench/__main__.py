"""The benchmark behind ``make bench``: ``python cmd/basenet-bench``."""

from basenet.testing.bench.main import main

main()
