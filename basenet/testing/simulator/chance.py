"""Chance by name: every use has its own stream, so that one fault taken away moves no other.

A stream is made from the seed and a name. Python's generator takes text by SHA-512, so that no
hash of the process enters and the same seed gives the same run everywhere.
"""

from random import Random
from typing import Final

_SALT: Final = "basenet simulator 1"


def stream(seed: int, *name: object) -> Random:
    """Return the generator of this ``name`` in the run ``seed``."""
    return Random("/".join((_SALT, str(seed), *map(str, name))))
