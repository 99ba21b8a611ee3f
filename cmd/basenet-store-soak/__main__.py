"""A long run against a store in bad weather: ``python cmd/basenet-store-soak --minutes 10``."""

from basenet.testing.storesoak import main

main()
