"""The main process of a cluster node: ``-m basenet.guardian [--exec=CMD] -- [DB [ARCHIVE]]``.

`basenet serve` becomes this program when BASE_NETWORK is quasar; nobody needs to start it by hand.
"""

import sys

from basenet.guardian.become import daemon_words
from basenet.guardian.parent import run


def main() -> int:
    """Run the guardian with the process's own arguments; return the exit code."""
    options, words = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    command = options[0].removeprefix("--exec=") if options else None
    return run(daemon_words(words), command)


sys.exit(main())
