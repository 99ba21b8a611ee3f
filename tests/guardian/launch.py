"""A guardian whose daemon is puppet.py; ``--exec`` comes from LAUNCH_EXEC. Started by tests."""

import os
import sys
from pathlib import Path

from basenet.guardian.parent import run

PUPPET = Path(__file__).with_name("puppet.py")

sys.exit(run([sys.executable, str(PUPPET)], os.environ.get("LAUNCH_EXEC")))
