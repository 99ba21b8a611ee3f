"""Which frames of an archive are proven final, object by object.

Theory of operation
===================

In an epoch of several voters a frame that its leader signed is only a proposal. What makes it final
is a certificate, and an object of the log carries those of its frames::

    object   [genesis  2  3  4]    [5  6  CONFIG 8  9]    [10 of a run]   [11 of it, 12 its end]
    CERT      consent        4             CONFIG   9                                        12

A certificate speaks for everything below it in its epoch, and that of a CONFIG ends an epoch
(`wire.finality`). So a reader who follows the log holds at most one thing open: since which object
whole frames *wait* for a certificate above them. Where a restore or the log ends, nothing may wait.
The pieces of a run are no state and wait for nothing: the certificate of its end speaks for them.

One voter needs no certificates. Who the voters are is followed by `archive.trust`.
"""

from collections.abc import Sequence
from itertools import pairwise

from basenet.archive.facts import naming
from basenet.archive.trust import Standing
from basenet.errors import CertificateInvalid, ChainBroken
from basenet.wire.certificate import COMMIT, Certificate
from basenet.wire.finality import Electors, verify_final
from basenet.wire.frame import Head, check_link


class Finality:
    """What of one lineage is proven final so far."""

    def __init__(self) -> None:
        """Nothing was read, and nothing waits."""
        self._waiting: tuple[str, Head, int] | None = None

    def take(
        self,
        standing: Standing,
        heads: Sequence[Head],
        last: int,
        proofs: Sequence[Certificate],
        name: str,
    ) -> None:
        """Judge the frames up to the seq ``last`` of the object ``name``, by its ``proofs``.

        ``standing``: that behind ``last``; the CONFIGs among the frames were followed already, and
        so were the links up to ``last``. ``heads``: of the object's frames, and they may go on
        above ``last``: a certificate there counts.
        Raises `CertificateInvalid` or `ChainBroken`, which begin with ``name``.
        """
        electors = standing.electors
        if electors is None or not standing.is_certified:
            self._waiting = None
            return
        if self._waiting is not None and self._waiting[1].seq <= electors.head.seq:
            self._waiting = None  # the CONFIG above them is final
        heads = [head for head in heads if head.seq > electors.head.seq]
        whole = [head for head in heads if head.seq <= last and not head.is_partial]
        if not whole:
            return
        with naming(name):
            self._judge(electors, heads, whole, proofs, name)

    def _judge(
        self,
        electors: Electors,
        heads: Sequence[Head],
        whole: Sequence[Head],
        proofs: Sequence[Certificate],
        name: str,
    ) -> None:
        end = whole[-1]
        if end.epoch != electors.epoch:
            raise ChainBroken(
                f"frame {end.seq} is of epoch {end.epoch}, and no CONFIG began another than "
                f"{electors.epoch}"
            )
        places = {head.seq: head for head in heads if head.epoch == electors.epoch}
        usable = sorted(
            (proof for proof in proofs if _is_of(proof, electors) and proof.height in places),
            key=lambda proof: proof.height,
        )
        above = next((proof for proof in usable if proof.height >= end.seq), None)
        proof = above or (usable[-1] if usable else None)
        if proof is not None:
            beyond = [head for head in heads if end.seq <= head.seq <= proof.height]
            for before, after in pairwise(beyond):
                check_link(before, after)
            verify_final(electors, [places[proof.height]], proof)
            self._waiting = None
        if above is None and self._waiting is None:
            proven = proof.height if proof is not None else 0
            first = next(head for head in whole if head.seq > proven)
            self._waiting = name, first, len(electors.config.voters)

    def require(self) -> None:
        """Raise `CertificateInvalid`, which names the object, if whole frames wait for one."""
        if self._waiting is not None:
            name, head, voters = self._waiting
            raise CertificateInvalid(
                f"{name}: from frame {head.seq} on no certificate proves what it holds final, and "
                f"{voters} voters decide"
            )


def check_head(standing: Standing, head: Head, proofs: Sequence[Certificate], name: str) -> None:
    """Raise unless ``head``, of a page set or a TIP ``name``, is proven final where it stands.

    ``standing``: that behind it. Raises `CertificateInvalid` or `ChainBroken`.
    """
    electors = standing.electors
    if electors is None or not standing.is_certified or electors.head.hash == head.hash:
        return
    with naming(name):
        proof = next((one for one in proofs if _is_of(one, electors)), None)
        verify_final(electors, [head], proof)


def _is_of(proof: Certificate, electors: Electors) -> bool:
    return proof.phase == COMMIT and proof.epoch == electors.epoch
