"""Which frames of a lineage are final: proven to a third party by heads and certificates alone.

Theory of operation
===================

A lineage names its voters itself, in CONFIG frames. Each one makes an *epoch*::

    genesis ─── COMMIT ── COMMIT ── CONFIG ─── COMMIT ── CONFIG ───
    └────────── epoch 1 ──────────────────┘└── epoch 2 ────────┘└── epoch 3
       certified by the voters              by the voters of
       that the genesis names               the CONFIG before it

1. The genesis is consented to by all the voters that it names: a certificate of phase 0 over the
   tuple `genesis`, n of n. A genesis of one voter needs none, since its author is all of them.
2. A frame is final in its epoch when a quorum of that epoch's voters gave COMMIT votes for it or
   for a frame above it in the same epoch: a vote accepts everything that the hash chain binds below
   it. An epoch of one voter needs no certificate: its author's signature is the vote.
3. A CONFIG is the last frame of its epoch and final by the voters *before* it; then its own decide.
4. A frame is authored by the leader of the view that it names: the voters' order, round and round.
   Nothing is final that ends inside a PARTIAL run (P22).

So whoever believes a genesis needs the CONFIGs with their certificates, and for a stretch of the
history its heads and one certificate: no frame between them, and no word of any node. Whether the
genesis is to be believed is the operator's to say (`archive.trust`); a child lineage is judged by
its own genesis, and `check_genesis` compares it with its parent.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from basenet.errors import CertificateInvalid, ChainBroken
from basenet.units import Epoch, PublicKeyBytes, View
from basenet.wire.certificate import (
    CONSENT,
    Certificate,
    Verify,
    check_signatures,
    check_voters,
    describe_certificate,
    verify_certificate,
)
from basenet.wire.chain import check_genesis
from basenet.wire.frame import Head, Kind, check_link, checksum
from basenet.wire.payload import ConfigPayload, encode_config
from basenet.wire.signature import is_signed
from basenet.wire.tuples import Scope

_FIRST_EPOCH: Final = Epoch(1)
_FIRST_VIEW: Final = View(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """A CONFIG after the genesis: its head, its decoded payload, and the votes that made it final.

    ``certificate``: None where the epoch before it has one voter.
    """

    head: Head
    config: ConfigPayload
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Electors:
    """Who decides in one epoch; ``head`` is the CONFIG frame that began it, and it is final."""

    scope: Scope
    epoch: Epoch
    config: ConfigPayload
    head: Head

    def leader(self, view: View) -> PublicKeyBytes:
        """Return who leads in ``view``, and so authors what is first proposed in it."""
        voters = self.config.voters
        return voters[view % len(voters)].key


def found(
    genesis: Head,
    config: ConfigPayload,
    certificate: Certificate | None,
    *,
    parent: Head | None = None,
    verify: Verify = is_signed,
) -> Electors:
    """Return who decides from ``genesis`` on; ``config`` is its decoded payload.

    ``parent``: the head of the frame that it continues, where that is at hand. Raises `ChainBroken`
    if it is no genesis, `CertificateInvalid` if a voter's consent is missing.
    """
    check_genesis(genesis, config, parent)
    electors = Electors(
        scope=Scope(config.lineage, genesis.shard),
        epoch=_FIRST_EPOCH,
        config=config,
        head=genesis,
    )
    if genesis.view != _FIRST_VIEW:
        raise ChainBroken(f"{_name(genesis)} is a genesis in view {genesis.view}")
    _check_author(electors, genesis, verify)
    if certificate is None:
        _require_no_certificate(electors, genesis)
        return electors
    _check_place(certificate, genesis)
    if certificate.view != _FIRST_VIEW:
        raise CertificateInvalid(f"{describe_certificate(certificate)} is of no genesis")
    check_voters(certificate, config, len(config.voters), CONSENT, _FIRST_EPOCH)
    check_signatures(certificate, electors.scope.genesis(genesis.hash), verify)
    return electors


def succeed(electors: Electors, succession: Succession, *, verify: Verify = is_signed) -> Electors:
    """Return who decides after the next CONFIG, which ``electors`` made final.

    Raises `ChainBroken` or `CertificateInvalid` if they did not.
    """
    head, config = succession.head, succession.config
    if head.kind != Kind.CONFIG or config.lineage != electors.config.lineage or config.is_forced:
        raise ChainBroken(f"{_name(head)} is no CONFIG of this lineage, or is FORCED")
    payload = encode_config(config)
    if head.cksm != checksum(head.shard, head.seq, head.prev_seq, head.salt, payload):
        raise ChainBroken(f"{_name(head)} is not the CONFIG that is shown with it")
    verify_final(electors, [head], succession.certificate, verify=verify)
    return Electors(scope=electors.scope, epoch=Epoch(electors.epoch + 1), config=config, head=head)


def verify_line(
    electors: Electors, successions: Iterable[Succession], *, verify: Verify = is_signed
) -> Electors:
    """Return who decides after all of these CONFIGs; what lies between them need not be at hand."""
    for succession in successions:
        electors = succeed(electors, succession, verify=verify)
    return electors


def verify_final(
    electors: Electors,
    heads: Sequence[Head],
    certificate: Certificate | None,
    *,
    verify: Verify = is_signed,
) -> None:
    """Raise unless all of ``heads`` are final in the epoch of ``electors``.

    They are neighbours, ascending, at least one, and ``certificate`` speaks of the last of them;
    None only where one voter decides. Raises `ChainBroken` for a head out of place or not by its
    leader, `CertificateInvalid` for votes that do not prove the last one final.
    """
    assert heads, "no frame is no history"
    if heads[0].seq <= electors.head.seq + 1:
        check_link(electors.head, heads[0])
    for before, after in itertools.pairwise(heads):
        check_link(before, after)
        if before.kind == Kind.CONFIG:
            raise ChainBroken(f"{_name(after)} follows a CONFIG in its epoch, which that ends")
    for head in heads:
        _check_author(electors, head, verify)
    last = heads[-1]
    if last.is_partial:
        raise ChainBroken(
            f"{_name(last)} ends inside a PARTIAL run, which is never final by itself"
        )
    if certificate is None:
        _require_no_certificate(electors, last)
        return
    _check_place(certificate, last)
    verify_certificate(
        certificate,
        scope=electors.scope,
        epoch=electors.epoch,
        config=electors.config,
        verify=verify,
    )


def _check_author(electors: Electors, head: Head, verify: Verify) -> None:
    """Refuse a frame of another shard or epoch, or one that its leader did not author and sign."""
    if (head.shard, head.epoch) != (electors.scope.shard, electors.epoch):
        raise ChainBroken(
            f"{_name(head)} is of epoch {head.epoch}, where epoch {electors.epoch} of "
            f"{electors.scope.shard!r} is judged"
        )
    if head.author != electors.leader(head.view):
        raise ChainBroken(
            f"{_name(head)} is authored by {head.author.hex()}, who does not lead view {head.view}"
        )
    if not verify(head.author, head.signature, head.signed_message):
        raise ChainBroken(f"{_name(head)} is not signed by its author")


def _check_place(certificate: Certificate, head: Head) -> None:
    if (certificate.height, certificate.hash) != (head.seq, head.hash):
        raise CertificateInvalid(
            f"{describe_certificate(certificate)} speaks of another frame than {_name(head)}"
        )


def _require_no_certificate(electors: Electors, head: Head) -> None:
    count = len(electors.config.voters)
    if count > 1:
        raise CertificateInvalid(f"{_name(head)} has no certificate, and {count} voters decide")


def _name(head: Head) -> str:
    return f"frame {head.seq} of {head.shard!r}"
