"""What a query of a large database costs: a row of 200 MB comes for less than a hundredth of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from basenet.keys.trust import format_public
from tests.archive.builder import Archive
from tests.archive.recorder import Recorder, write
from tests.fakes.chain import signer

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROWS = 650_000
SHARE_MAX = 0.01


def test_one_row_costs_less_than_a_hundredth(tmp_path: Path) -> None:
    """By primary key and by an index, right after the snapshot and a commit later."""
    recorder = Recorder(tmp_path / "source.db")
    recorder.run("CREATE TABLE t(id INTEGER PRIMARY KEY, email TEXT UNIQUE, x)")
    recorder.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO t "
        "SELECT i, printf('%d@example.org', i * 7919 % 650011), hex(randomblob(125)) FROM n",
        (ROWS,),
    )
    recorder.begin()
    recorder.run("UPDATE t SET x = 'new' WHERE id = 4711")
    recorder.commit()
    made = Archive()
    made.put_log(recorder.history, 1)
    made.put_set(recorder.history, 1)
    made.put_log(recorder.history, 2)
    made.put_tip(recorder.history)
    archive = write(made, tmp_path / "archive")
    keys = tmp_path / "keys"
    keys.write_text(f"{format_public(signer(1).public)} node\n")

    def ask(statement: str, seq: int) -> tuple[list[list[object]], float]:
        command = [sys.executable, "-m", "basenet", "query", str(archive), statement]
        answer = json.loads(
            subprocess.check_output(
                [*command, "--to-seq", str(seq), "--json", "--trusted-keys", str(keys)],
                env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
                cwd=tmp_path,
            )
        )
        assert answer["database_bytes"] >= 200_000_000
        return answer["rows"], answer["fetched_bytes"] / answer["database_bytes"]

    email = f"{4711 * 7919 % 650011}@example.org"
    for seq, length in ((1, 250), (2, 3)):
        for condition in ("id = 4711", f"email = '{email}'"):
            statement = f"SELECT id, length(x) FROM t WHERE {condition}"
            rows, share = ask(statement, seq)
            assert rows == [[4711, length]]
            assert share < SHARE_MAX
