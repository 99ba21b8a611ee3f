"""Several applications at once, of every bad habit, for a while."""

import time

import pytest

from basenet.sqlite.capture import CapturePolicy, Gap
from tests.sqlite.conftest import Scene

SECONDS = 6

WRITER = """
result = 0
while time.monotonic() < end:
    try:
        c.execute('insert into t values(?, zeroblob(60))', (result,))
        result += 1
    except sqlite3.OperationalError: pass
"""
BURSTS = """
while time.monotonic() < end:
    try:
        c.execute('begin immediate')
        for n in range(300): c.execute('insert into t values(?, randomblob(900))', (n,))
        c.execute('commit')
        c.execute('delete from t where rowid % 3 = 0')
    except sqlite3.OperationalError:
        if c.in_transaction: c.rollback()
    time.sleep(0.05)
"""
KEEPER = """
modes = ['passive', 'full', 'restart', 'truncate']
turn = 0
while time.monotonic() < end:
    turn += 1
    try: c.execute('pragma wal_checkpoint(' + modes[turn % 4] + ')').fetchall()
    except sqlite3.OperationalError: pass
    if turn % 10 == 0:
        try: c.execute('vacuum')
        except sqlite3.OperationalError: pass
    time.sleep(0.03)
"""
READER = """
while time.monotonic() < end:
    c.execute('begin'); a = c.execute('select count(*) from t').fetchone()
    time.sleep(0.02)
    b = c.execute('select count(*) from t').fetchone(); c.execute('commit')
    assert a == b, (a, b)
"""
VISITOR = """
while time.monotonic() < end:
    d = connect(timeout=0.2)
    try: d.execute("insert into t values('visit', 1)")
    except sqlite3.OperationalError: pass
    d.close()
    time.sleep(0.01)
"""


@pytest.mark.system
@pytest.mark.parametrize("policy", list(CapturePolicy))
def test_many_applications_at_once_are_followed(scene: Scene, policy: CapturePolicy) -> None:
    """Equal at the end, and SQLite finds nothing wrong with the application's own file."""
    scene.open("pragma synchronous=normal", policy=policy)
    scripts = [WRITER, BURSTS, KEEPER, READER, VISITOR]
    applications = [scene.start(timeout_s=0.3) for _ in scripts]
    for application, script in zip(applications, scripts, strict=True):
        application.start(f"end = time.monotonic() + {SECONDS}\n" + script)
    waiting = list(applications)
    end = time.monotonic() + 10 * SECONDS

    def is_over() -> bool:
        waiting[:] = [application for application in waiting if not application.is_finished()]
        return not waiting or time.monotonic() > end

    while not is_over():
        try:
            scene.capture.run_active(scene.mirror.sink, is_over)
        except Gap as gap:
            scene.mirror.recover(gap)
    for application in applications:
        application.finish()
    scene.check()
    assert scene.application.sql("pragma integrity_check") == [["ok"]]
    if policy is CapturePolicy.STRICT:
        assert scene.mirror.gaps == []
