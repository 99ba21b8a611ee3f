"""Servers in child processes: they say where they are, and end with whoever started them."""

import os
import subprocess
import sys

import pytest

from basenet.errors import UnavailableError
from basenet.testing.child import running_module


def test_a_child_that_does_not_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Its own words are on the error output."""
    with pytest.raises(UnavailableError, match="did not start"), running_module("basenet.none"):
        pass
    assert "No module named basenet.none" in capfd.readouterr().err


def test_a_server_ends_when_its_parent_is_killed() -> None:
    """Its standard input ends then, and so its standard output, which is all that is waited for."""
    script = (
        "import os, signal\n"
        "from basenet.testing.objectstores import running_object_store\n"
        "with running_object_store('gs') as url:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    read_end, write_end = os.pipe()
    # The server inherits the writing end of this pipe: once nobody has it, nobody is left.
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=write_end)
    os.close(write_end)
    assert parent.wait(20) == -9
    with os.fdopen(read_end, "rb") as end:
        assert end.read() == b""
