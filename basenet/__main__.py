"""``python -m basenet`` is the command ``basenet``."""

from basenet.cli.main import main

main()
