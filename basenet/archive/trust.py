"""Whose signatures are believed, at each point of a history.

Theory of operation
===================

The operator names keys; a history names voters, in CONFIG frames. A reader follows the line of
CONFIGs and holds a `Standing`: the voters of the CONFIG in force, and the keys it believes.

1. An operator's key is believed wherever it is a voter's key.
2. A CONFIG that a believed key authored makes the voters that it names believed from there on, so
   that a trusted-keys file outlives a change of keys (Q22).
3. A genesis is authored by a voter of its own. That of a child lineage must also be a voter of its
   parent's CONFIG at the parent's seq, or else be FORCED (Q4).
4. FORCED breaks the line: only the operator's own keys count after it. Choosing that lineage by
   name also admits its author if the parent had it as a voter, and nobody else (Q5).
5. A later CONFIG is authored by a voter of the one before it.

Every frame's author, and every object's signer, must be a voter in force *and* believed. So a key
that merely lies in the archive can do nothing, and one that was voted out can do nothing more.

A history of one voter needs no certificates: the author's signature is the vote. A CONFIG that
names more voters is refused here: this reader could not tell a final frame from a proposed one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from basenet.archive.facts import SetFacts, Signed
from basenet.errors import ChainBroken, CorruptionError, UntrustedKey
from basenet.keys.trust import get_fingerprint
from basenet.units import Lineage, PublicKeyBytes
from basenet.wire.frame import Frame, Head, Kind, genesis_prev_hash
from basenet.wire.payload import ConfigPayload, decode_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who counts at one point of a line.

    ``operator``: the keys that the operator trusts. ``believed``: those, and the ones that the line
    vouches for. ``voters``: of the CONFIG in force; None when that CONFIG is not in the archive,
    and then only ``believed`` decides.
    """

    operator: frozenset[PublicKeyBytes]
    believed: frozenset[PublicKeyBytes]
    voters: frozenset[PublicKeyBytes] | None = None

    def accepts(self, key: PublicKeyBytes) -> bool:
        """Return whether ``key`` may author and sign here."""
        return key in self.believed and (self.voters is None or key in self.voters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The first frame of a lineage and the CONFIG in it."""

    frame: Frame
    config: ConfigPayload

    @property
    def head(self) -> Head:
        """The frame's head."""
        return self.frame.head


def begin(trusted: Iterable[PublicKeyBytes]) -> Standing:
    """Return the standing before any CONFIG: the operator's keys alone."""
    keys = frozenset(trusted)
    return Standing(operator=keys, believed=keys)


def read_genesis(frame: Frame, lineage: Lineage, name: str) -> Genesis:
    """Return ``frame``, the first of ``lineage``, as its genesis; ``name`` is its object.

    Raises `ChainBroken` if it is none, or not that of this lineage; whom it names is not judged.
    """
    head = frame.head
    if head.prev_hash != genesis_prev_hash(frame.payload):
        raise ChainBroken(f"{name}: frame {head.seq} is no genesis, where the lineage begins")
    config = decode_config(frame.payload)
    seq = 1 if config.parent is None else config.parent[1] + 1
    if config.lineage != lineage or head.seq != seq:
        raise ChainBroken(
            f"{name}: the genesis at seq {head.seq} is that of lineage {config.lineage.hex()} "
            f"at seq {seq}"
        )
    if config.is_forced and config.parent is None:
        raise ChainBroken(f"{name}: the genesis is FORCED but continues no lineage")
    _check_voters(frame, config, name)
    if head.author not in {voter.key for voter in config.voters}:
        raise ChainBroken(f"{name}: the author of the genesis at seq {head.seq} is no voter in it")
    return Genesis(frame=frame, config=config)


def enter(
    standing: Standing, genesis: Genesis, name: str, *, chosen: Lineage | None = None
) -> Standing:
    """Return the standing after ``genesis``; ``standing`` is that of its parent at its seq.

    ``chosen`` is the lineage that the operator named. Raises `ChainBroken` for an author who may
    not begin a lineage here; whether he is believed is asked with each frame and object.
    """
    author, config = genesis.head.author, genesis.config
    believed = standing.believed
    is_voter = standing.voters is None or author in standing.voters
    if config.is_forced:
        believed = standing.operator
        if chosen == config.lineage and standing.voters is not None and is_voter:
            believed |= {author}
    elif not is_voter:
        raise ChainBroken(
            f"{name}: {get_fingerprint(author)} begins lineage {config.lineage.hex()} without "
            "having been a voter of its parent, and without FORCED"
        )
    return _follow(standing, believed, genesis.frame, config)


def change(standing: Standing, frame: Frame, lineage: Lineage, name: str) -> Standing:
    """Return the standing after the CONFIG ``frame``, which is not a genesis."""
    config = decode_config(frame.payload)
    if config.lineage != lineage or config.is_forced:
        raise ChainBroken(
            f"{name}: the CONFIG at seq {frame.head.seq} is FORCED, or of another lineage"
        )
    _check_voters(frame, config, name)
    check_author(standing, frame.head, name)
    return _follow(standing, standing.believed, frame, config)


def _follow(
    standing: Standing, believed: frozenset[PublicKeyBytes], frame: Frame, config: ConfigPayload
) -> Standing:
    voters = frozenset(voter.key for voter in config.voters)
    if frame.head.author in believed:
        believed |= voters
    return Standing(operator=standing.operator, believed=believed, voters=voters)


def _check_voters(frame: Frame, config: ConfigPayload, name: str) -> None:
    """Refuse a CONFIG that nobody signed, or that this reader cannot judge."""
    if not frame.head.is_signed_by_author():
        raise ChainBroken(f"{name}: its author did not sign the CONFIG at seq {frame.head.seq}")
    if len(config.voters) != 1:
        raise CorruptionError(
            f"{name}: the CONFIG at seq {frame.head.seq} names {len(config.voters)} voters, and "
            "this basenet reads histories of one; upgrade basenet"
        )


def check_author(standing: Standing, head: Head, name: str) -> None:
    """Raise unless the author of ``head`` counts here; his signature is not verified."""
    if not standing.accepts(head.author):
        raise _refuse(standing, head.author, f"{name}: frame {head.seq} is authored by")


def check_set_author(standing: Standing, facts: SetFacts) -> None:
    """Raise unless the author of the frame that a page set stands at counts there.

    ``standing`` is that after the frame: a CONFIG may have voted its own author out, who must then
    still be believed.
    """
    head, name = facts.head, facts.signed.name
    if head.kind is not Kind.CONFIG or head.author not in standing.believed:
        check_author(standing, head, name)


def check_signer(standing: Standing, signed: Signed) -> None:
    """Raise unless the key that signed the object counts here."""
    if not standing.accepts(signed.signer):
        raise _refuse(standing, signed.signer, f"{signed.name} is signed by")


def _refuse(standing: Standing, key: PublicKeyBytes, what: str) -> CorruptionError:
    shown = get_fingerprint(key)
    if key in standing.believed:
        return ChainBroken(f"{what} {shown}, which is no voter there")
    return UntrustedKey(
        f"{what} {shown}, which is not trusted; if it is yours, add the line that `basenet keys "
        "show` prints on the node that wrote it to the trusted keys"
    )
