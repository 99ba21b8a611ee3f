"""The demonstration behind ``make demo-cluster``: ``python cmd/basenet-cluster-demo``."""

from basenet.testing.clusterdemo import main

main()
