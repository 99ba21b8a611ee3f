"""The demonstration behind ``make demo``: ``python cmd/basenet-demo``."""

from basenet.testing.demo import main

main()
