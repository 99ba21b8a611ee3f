"""The basenet command, from a checkout: ``python cmd/basenet``."""

from basenet.cli.main import main

main()
