"""The simulator behind ``make simulate``: ``python cmd/basenet-sim``."""

from basenet.testing.simulator.main import main

main()
