"""Which frames of an archive are proven final, object by object."""

import pytest

from basenet.archive.finality import Finality, check_head
from basenet.archive.trust import Standing
from basenet.errors import CertificateInvalid, ChainBroken
from basenet.wire.certificate import PREPARE, Certificate
from basenet.wire.frame import Flag
from tests.wire.cluster import History, config_of


class Reader:
    """Reads a history of three voters object by object."""

    def __init__(self, voters: int = 3) -> None:
        self.history = History(config_of(voters))
        self.finality = Finality()
        electors = self.history.electors()
        keys = frozenset(voter.key for voter in electors.config.voters)
        self.standing = Standing(operator=keys, believed=keys, voters=keys, electors=electors)

    def grow(self, count: int) -> None:
        for _ in range(count):
            self.history.add()

    def take(self, first: int, end: int, *proofs: Certificate, last: int | None = None) -> None:
        """Read the object of the frames ``first`` .. ``end``, up to ``last``."""
        heads = self.history.heads[first - 1 : end]
        self.finality.take(self.standing, heads, last or end, proofs, f"object {first}")

    def proof(self, seq: int, *voters: int) -> Certificate:
        return self.history.certify(self.history.heads[seq - 1], *(voters or (0, 1)))


def test_a_certificate_speaks_for_what_is_below_it() -> None:
    """One at the end of an object is enough for all of it."""
    reader = Reader()
    reader.grow(5)
    reader.take(1, 6, reader.proof(6))
    reader.finality.require()


def test_without_a_certificate_the_object_is_named() -> None:
    """The first whose frames wait for one, wherever the log ends."""
    reader = Reader()
    reader.grow(8)
    reader.take(1, 3, reader.proof(3))
    reader.take(4, 6)
    reader.take(7, 9)
    with pytest.raises(CertificateInvalid, match=r"object 4: from frame 4 on .* 3 voters decide"):
        reader.finality.require()


def test_a_later_certificate_counts() -> None:
    """Frames that wait are proven by one above them in their epoch."""
    reader = Reader()
    reader.grow(5)
    reader.take(1, 3)
    reader.take(4, 6, reader.proof(6))
    reader.finality.require()


def test_frames_behind_the_last_certificate_wait() -> None:
    """A certificate in the middle proves no frame above it."""
    reader = Reader()
    reader.grow(5)
    reader.take(1, 6, reader.proof(4))
    with pytest.raises(CertificateInvalid, match="from frame 5 on"):
        reader.finality.require()


def test_a_restore_may_end_below_the_certificate() -> None:
    """The rest of the object is read for it, and not applied."""
    reader = Reader()
    reader.grow(5)
    reader.take(1, 6, reader.proof(6), last=3)
    reader.finality.require()


def test_votes_are_verified() -> None:
    """Too few, of another phase, or for another frame: no proof, and the object is named."""
    reader = Reader()
    reader.grow(2)
    with pytest.raises(CertificateInvalid, match=r"object 1: .*1 of the 2 votes"):
        reader.take(1, 3, reader.proof(3, 0))
    prepared = reader.history.certify(reader.history.heads[2], 0, 1, phase=PREPARE)
    reader.take(1, 3, prepared)
    with pytest.raises(CertificateInvalid, match="no certificate"):
        reader.finality.require()


def test_pieces_of_a_run_wait_for_nothing() -> None:
    """They are no state; their end has the certificate."""
    reader = Reader()
    reader.grow(1)
    reader.history.add(flags=Flag.PARTIAL)
    reader.take(1, 3, reader.proof(2))
    reader.finality.require()


def test_one_voter_needs_none() -> None:
    """His signature is the vote."""
    reader = Reader(1)
    reader.grow(3)
    reader.take(1, 4)
    reader.finality.require()


def test_an_epoch_without_its_config_is_refused() -> None:
    """Nobody knows who decides there."""
    reader = Reader()
    reader.grow(1)
    reader.history.change(config_of(3), 0, 1)
    reader.history.add()
    with pytest.raises(ChainBroken, match="object 4: frame 4 is of epoch 2"):
        reader.take(4, 4)


def test_a_head_beside_pages_needs_its_own_certificate() -> None:
    """But the frame that began the epoch is final already."""
    reader = Reader()
    reader.grow(2)
    genesis, _, head = reader.history.heads
    check_head(reader.standing, genesis, (), "set")
    check_head(reader.standing, head, [reader.proof(3)], "set")
    with pytest.raises(CertificateInvalid, match="set: "):
        check_head(reader.standing, head, (), "set")
    with pytest.raises(CertificateInvalid, match="set: "):
        check_head(reader.standing, head, [reader.proof(2)], "set")
