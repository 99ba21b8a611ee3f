"""The long runs behind ``make soak``: ``python cmd/basenet-soak --minutes 30``."""

from basenet.testing.clusterchaos import main

main()
