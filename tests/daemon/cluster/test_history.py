"""The final history for those who are behind: certified pieces that a message can hold."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from basenet.daemon.cluster import history
from basenet.daemon.cluster.history import final_pieces
from basenet.journal.journal import Journal
from basenet.journal.records import BranchRow
from basenet.units import JournalId, PublicKeyBytes, Seq
from basenet.wire.frame import Flag, Frame, Kind
from basenet.wire.payload import Voter, decode_config, encode_config
from tests.fakes.branching import SHARD, Branching
from tests.fakes.chain import Chain


class Voters(Chain):
    """A lineage with so many voters."""

    count = 3

    def _append(self, payload: bytes, kind: Kind, flags: Flag, **more: Any) -> Frame:
        if not self.frames:
            config = decode_config(payload)
            others = tuple(
                Voter(
                    node_id=f"other{number}",
                    key=PublicKeyBytes(bytes([90 + number]) * 32),
                    journal_id=JournalId(bytes([90 + number]) * 16),
                )
                for number in range(1, self.count)
            )
            payload = encode_config(replace(config, voters=config.voters + others))
        return super()._append(payload, kind, flags, **more)


class One(Voters):
    count = 1


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


def begin(journal: Journal, kind: type[Voters] = Voters) -> Branching:
    pages = {pgno: bytes([pgno]) * 512 for pgno in range(1, 5)}
    branching = Branching(kind(pages=pages))
    journal.begin_replica(**branching.birth())
    return branching


def settle(
    journal: Journal, branching: Branching, rows: list[BranchRow], *, is_certified: bool = True
) -> None:
    journal.keep([branching.step(rows)])
    journal.settle([branching.settled(rows, is_certified=is_certified)])


def told(journal: Journal, above: int) -> list[tuple[int, int | None]] | None:
    """What is told above ``above``: how many frames, and up to where they are certified."""
    pieces = final_pieces(journal, SHARD, Seq(above))
    if pieces is None:
        return None
    return [(len(records), proof.height if proof else None) for records, proof in pieces]


def test_pieces_end_at_certificates_and_epochs(journal: Journal) -> None:
    """And begin wherever who asks has come to."""
    branching = begin(journal)
    settle(journal, branching, branching.others(3))  # 2..4
    settle(journal, branching, branching.others(1, pieces=3))  # 5..7
    settle(journal, branching, branching.new_config())  # 8
    settle(journal, branching, branching.others(2))  # 9, 10
    assert told(journal, 1) == [(7, 8), (2, 10)]
    assert told(journal, 5) == [(3, 8), (2, 10)]
    assert told(journal, 8) == [(2, 10)]
    assert told(journal, 10) == []
    assert told(journal, 11) == []


def test_one_voters_frames_need_no_certificate_but_whole_runs(journal: Journal) -> None:
    """Wherever the stretch is cut."""
    branching = begin(journal, One)
    settle(journal, branching, branching.own(2), is_certified=False)
    settle(journal, branching, branching.own(1, pieces=3), is_certified=False)
    assert told(journal, 1) == [(5, None)]


def test_without_a_certificate_several_voters_history_is_not_told(journal: Journal) -> None:
    """It would prove nothing, and end the connection: who asks takes over a state."""
    branching = begin(journal)
    settle(journal, branching, branching.others(2))
    settle(journal, branching, branching.others(2), is_certified=False)
    assert told(journal, 1) == [(2, 3)]
    assert told(journal, 3) is None


def test_what_is_pruned_is_not_told(journal: Journal) -> None:
    """Neither is anything above it."""
    branching = begin(journal)
    settle(journal, branching, branching.others(4))
    journal.set_archived(SHARD, 3)
    assert told(journal, 1) is None
    assert told(journal, 2) is None
    assert told(journal, 3) == [(2, 5)]


def test_a_piece_fits_into_a_message(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """By count and by bytes; and one answer is a stretch only."""
    branching = begin(journal)
    for _ in range(6):
        settle(journal, branching, branching.others(2))
    monkeypatch.setattr(history, "PACK_RECORDS_MAX", 5)
    assert told(journal, 1) == [(4, 5), (4, 9), (4, 13)]
    monkeypatch.setattr(history, "_STRETCH_BYTES", 1)
    assert told(journal, 1) == [(4, 5)]
    monkeypatch.setattr(history, "_PIECE_BYTES", 1)
    assert told(journal, 1) is None
    assert told(journal, 2) == [(1, 3)]
