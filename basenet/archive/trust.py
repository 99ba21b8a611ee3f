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

Where several voters decide, certificates tell a final frame from a proposed one: the standing holds
the *electors* of the epoch (`wire.finality`), and `archive.finality` judges frames by them. A
genesis is consented to by all its voters, and a CONFIG made final by those before it: so whoever
believes one of them believes the voters that they name. Who signed an *object* does not matter
there: all that it holds is proven without him.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from basenet.archive.facts import SetFacts, Signed, naming
from basenet.errors import ChainBroken, CorruptionError, UntrustedKey
from basenet.keys.trust import get_fingerprint
from basenet.units import Epoch, Lineage, PublicKeyBytes
from basenet.wire.certificate import Certificate
from basenet.wire.finality import Electors, Succession, found, succeed
from basenet.wire.frame import Frame, Head, Kind, genesis_prev_hash
from basenet.wire.payload import ConfigPayload, decode_config
from basenet.wire.tuples import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who counts at one point of a line.

    ``operator``: the keys that the operator trusts. ``believed``: those, and the ones that the line
    vouches for. ``voters``: of the CONFIG in force; None when that CONFIG is not in the archive,
    and then only ``believed`` decides. ``electors``: who makes frames final; None: not known.
    """

    operator: frozenset[PublicKeyBytes]
    believed: frozenset[PublicKeyBytes]
    voters: frozenset[PublicKeyBytes] | None = None
    electors: Electors | None = None

    @property
    def is_certified(self) -> bool:
        """Whether several voters decide, so that a frame counts by its certificate."""
        return self.electors is not None and len(self.electors.config.voters) > 1

    def accepts(self, key: PublicKeyBytes) -> bool:
        """Return whether ``key`` may author and sign here."""
        return key in self.believed and (self.voters is None or key in self.voters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The first frame of a lineage, the CONFIG in it, and the consent of its voters if several."""

    frame: Frame
    config: ConfigPayload
    certificate: Certificate | None = None

    @property
    def head(self) -> Head:
        """The frame's head."""
        return self.frame.head


def begin(trusted: Iterable[PublicKeyBytes]) -> Standing:
    """Return the standing before any CONFIG: the operator's keys alone."""
    keys = frozenset(trusted)
    return Standing(operator=keys, believed=keys)


def read_genesis(
    frame: Frame, lineage: Lineage, name: str, proofs: Sequence[Certificate] = ()
) -> Genesis:
    """Return ``frame``, the first of ``lineage``, as its genesis; ``name`` is its object.

    ``proofs``: the certificates in that object, the consent among them; not verified here. Raises
    `ChainBroken` if it is none, or not that of this lineage; whom it names is not judged.
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
    _check_signed(frame, name)
    if head.author not in {voter.key for voter in config.voters}:
        raise ChainBroken(f"{name}: the author of the genesis at seq {head.seq} is no voter in it")
    return Genesis(frame=frame, config=config, certificate=_find_proof(proofs, head))


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
    with naming(name):
        electors = _found(genesis)
    return _follow(standing, believed, genesis.frame, electors, genesis.certificate)


def change(
    standing: Standing,
    frame: Frame,
    lineage: Lineage,
    name: str,
    proofs: Sequence[Certificate] = (),
) -> Standing:
    """Return the standing after the CONFIG ``frame``, which is not a genesis.

    ``proofs``: the certificates in its object. Raises `ChainBroken` or `CertificateInvalid`.
    """
    config = decode_config(frame.payload)
    if config.lineage != lineage or config.is_forced:
        raise ChainBroken(
            f"{name}: the CONFIG at seq {frame.head.seq} is FORCED, or of another lineage"
        )
    _check_signed(frame, name)
    check_author(standing, frame.head, name)
    proof = _find_proof(proofs, frame.head)
    with naming(name):
        electors = _succeed(standing.electors, frame, config, proof)
    return _follow(standing, standing.believed, frame, electors, proof)


def _found(genesis: Genesis) -> Electors:
    head, config = genesis.head, genesis.config
    if len(config.voters) > 1:
        return found(head, config, genesis.certificate)
    scope = Scope(config.lineage, head.shard)
    return Electors(scope=scope, epoch=head.epoch, config=config, head=head)


def _succeed(
    electors: Electors | None, frame: Frame, config: ConfigPayload, proof: Certificate | None
) -> Electors:
    head = frame.head
    if electors is not None and len(electors.config.voters) > 1:
        return succeed(electors, Succession(head=head, config=config, certificate=proof))
    scope = Scope(config.lineage, head.shard)
    return Electors(scope=scope, epoch=Epoch(head.epoch + 1), config=config, head=head)


def _find_proof(proofs: Sequence[Certificate], head: Head) -> Certificate | None:
    return next((proof for proof in proofs if proof.hash == head.hash), None)


def _follow(
    standing: Standing,
    believed: frozenset[PublicKeyBytes],
    frame: Frame,
    electors: Electors,
    proof: Certificate | None,
) -> Standing:
    voters = frozenset(voter.key for voter in electors.config.voters)
    signers = {key for key, _ in proof.votes} if proof is not None else set()
    if believed & (signers | {frame.head.author}):
        believed |= voters
    return Standing(operator=standing.operator, believed=believed, voters=voters, electors=electors)


def _check_signed(frame: Frame, name: str) -> None:
    """Refuse a CONFIG that nobody signed."""
    if not frame.head.is_signed_by_author():
        raise ChainBroken(f"{name}: its author did not sign the CONFIG at seq {frame.head.seq}")


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
    """Raise unless the key that signed the object counts here, or nothing depends on it."""
    if not standing.is_certified and not standing.accepts(signed.signer):
        raise _refuse(standing, signed.signer, f"{signed.name} is signed by")


def _refuse(standing: Standing, key: PublicKeyBytes, what: str) -> CorruptionError:
    shown = get_fingerprint(key)
    if key in standing.believed:
        return ChainBroken(f"{what} {shown}, which is no voter there")
    return UntrustedKey(
        f"{what} {shown}, which is not trusted; if it is yours, add the line that `basenet keys "
        "show` prints on the node that wrote it to the trusted keys"
    )
