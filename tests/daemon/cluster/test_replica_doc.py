"""docs/operations.md says what an application on a replica sees: each statement is tried."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.cluster.files import Opened, apply, opened, payload_of, whole_of
from tests.daemon.cluster.guarding import guardian
from tests.sqlite.application import Application, ApplicationError
from tests.sqlite.replica import Source

DOC = Path(__file__).parents[3] / "docs" / "operations.md"
BUSY_S = 0.3
AT_ONCE_S = 20.0
PASSES = "passes"
AT_ONCE = "refused at once"
WAITS = "refused after the busy timeout"
BUSY = "says busy after the busy timeout"


def rows() -> list[tuple[str, str]]:
    """(statements, what happens) of the table."""
    text = DOC.read_text().partition("### What an application on a replica sees")[2]
    table = text.partition("\n- *")[0]
    return re.findall(r"^\| `(.*)` \| (.*) \|$", table, re.MULTILINE)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    source = Source(tmp_path / "source.db")
    source.run("INSERT INTO t (v) VALUES ('a')")
    yield source
    source.close()


_TRY = """
began, error, rows = time.monotonic(), None, []
for statement in {statements}:
    try:
        rows = c.execute(statement).fetchall()
    except sqlite3.Error as found:
        error = str(found)
        break
result = [error, rows, time.monotonic() - began]
"""


def attempt(path: Path, statements: str, what: str) -> None:
    """Run ``statements`` with a busy timeout that shows whether it was waited for."""
    other = path.with_name("other.db")
    other.unlink(missing_ok=True)
    timeout_s = BUSY_S if what in (WAITS, BUSY) else AT_ONCE_S
    code = [each.strip().replace("OTHER", str(other)) for each in statements.split(";")]
    with Application(path, timeout_s=timeout_s) as app:
        app.sql("SELECT count(*) FROM t")
        error, found, seconds = app.run(_TRY.format(statements=code))
        is_refused = what in (WAITS, AT_ONCE)
        assert error == ("database is locked" if is_refused else None), (statements, error)
        if what == BUSY:
            assert found[0][0] == 1, statements
        elif "wal_checkpoint" in statements:
            assert found[0][0] == 0, statements
        if what in (WAITS, BUSY):
            assert seconds > 0.9 * BUSY_S, (statements, seconds)
        else:
            assert seconds < AT_ONCE_S, (statements, seconds)


async def test_each_statement_does_what_the_table_says(tmp_path: Path, source: Source) -> None:
    """With the stdlib's SQLite, as an application would; nothing of it reaches the file."""
    path = tmp_path / "app.db"
    table = rows()
    assert len(table) > 35
    assert {what for _, what in table} == {PASSES, AT_ONCE, WAITS, BUSY}
    with guardian(tmp_path) as socket:
        async with opened(path, socket) as here:
            await apply(here.file, whole_of(source))
            before = (await here.file.facts()).state_root
            for statements, what in table:
                attempt(path, statements, what)
            assert (await here.file.facts()).state_root == before
            await check_sentences(here, path, source)


async def check_sentences(here: Opened, path: Path, source: Source) -> None:
    """What stands below the table."""
    with Application(path, suffix="?mode=ro") as app:
        assert app.sql("SELECT count(*) FROM t") == [[1]]
    with Application(path, timeout_s=AT_ONCE_S) as app:
        copied = "d = sqlite3.connect(':memory:'); c.backup(d); "
        count = "result = d.execute('select count(*) from t').fetchall()"
        assert app.run(copied + count) == [[1]]
        # A reader that falls behind is refused at once when it wants to write.
        app.sql("BEGIN", "SELECT count(*) FROM t")
        source.run("INSERT INTO t (v) VALUES ('b')")
        await apply(here.file, payload_of(source))
        assert app.sql("SELECT count(*) FROM t") == [[1]]
        with pytest.raises(ApplicationError, match="locked"):
            app.sql("INSERT INTO t (v) VALUES ('c')")
        app.sql("ROLLBACK")
    # That was the last connection: the log stays, and so does the fence.
    assert {each.name for each in path.parent.glob("app.db*")} == {
        "app.db",
        "app.db-shm",
        "app.db-wal",
    }
    with Application(path, timeout_s=0) as app:
        assert app.sql("SELECT count(*) FROM t") == [[2]]
        with pytest.raises(ApplicationError, match="locked"):
            app.sql("INSERT INTO t (v) VALUES ('c')")
        # The node becomes the writer: the same connection writes.
        here.release()
        app.sql("PRAGMA busy_timeout=20000", "INSERT INTO t (v) VALUES ('c')")
        assert app.sql("SELECT count(*) FROM t") == [[3]]
