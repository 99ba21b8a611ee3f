"""``python -m basenet.config > docs/configuration.md``."""

import sys

from basenet.config.document import render_markdown

sys.stdout.write(render_markdown())
