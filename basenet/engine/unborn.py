"""A node that knows no lineage of the shard: it asks, and writes a genesis or signs one.

Theory of operation
===================

`Unborn` keeps what it was told (`answers`, offers, promises, lineages of others) and after every
event asks itself again what follows. Whatever it does rests on four facts only:

- the *record*: what it promised and took back, durable before it is told to anybody;
- the *answers* of members on their present connections; a new connection voids the old answer, so
  "none of them knows a lineage" is about the time after the last loss of a disk;
- M and its own file, read under the fence;
- the choice by `engine.author`, the same at every node that has the same answers.

The author's own signature never leaves this node before all the others are here, so taking a
genesis back (`_withdraw`) is safe at any time, and it is done whenever the genesis is no longer the
one that would be written now: another author, another membership, a voter with a new journal,
another file.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from basenet.engine.author import Answer, Blocked, Plan, Wait, decide
from basenet.engine.birth_events import (
    ArchiveSurveyed,
    BirthEffect,
    BirthReceived,
    NewJournalNeeded,
    PeerConnected,
    ReportBirth,
    SurveyArchive,
)
from basenet.engine.birth_record import WITHDRAWN_MAX, FileFate, Promise
from basenet.engine.consent import (
    Situation,
    find_missing,
    find_objection,
    may_replace,
    name_voters,
    root_of,
)
from basenet.engine.cradle import Cradle
from basenet.engine.events import Instant
from basenet.engine.genesis import (
    Genesis,
    certify,
    check_complete,
    read_genesis,
    write_genesis,
)
from basenet.engine.knowing import adopt
from basenet.engine.limits import SECOND
from basenet.engine.placement import Membership, Peer
from basenet.errors import CorruptionError
from basenet.units import ZERO_HASH, JournalId, PublicKeyBytes, TimestampNs
from basenet.wire.birth import (
    BirthAnswer,
    BirthAsk,
    FileFacts,
    GenesisOffer,
    GenesisPromise,
    HeldPromise,
    LineageKnown,
    Standing,
    Withdraw,
)
from basenet.wire.payload import BYZANTINE_VOTERS_MIN, ConfigPayload, FaultModel
from basenet.wire.tuples import Scope

SURVEY_PAUSE: Final = 10 * SECOND
"""How long the archive is left alone after it could not be used."""


class Unborn:
    """The phase before the birth; ends when `Cradle.record.known` is set.

    ``status``: what is waited for, one sentence. ``problem``: the same where a human must act.
    """

    def __init__(self, cradle: Cradle, members: Membership | str, file: FileFacts | None) -> None:
        self._cradle = cradle
        self._members = members
        self._file = file
        self._answers: dict[PublicKeyBytes, Answer] = {}
        self._offers: dict[PublicKeyBytes, Genesis] = {}
        self._foreign: dict[PublicKeyBytes, tuple[Genesis, LineageKnown]] = {}
        self._promises: dict[PublicKeyBytes, bytes] = {}
        self._survey: ArchiveSurveyed | None = None
        self._is_surveying = False
        self._survey_at: Instant | None = None
        promise = cradle.record.promise
        self._genesis = self._read(promise.genesis) if promise else None
        self.status = ""
        self.problem: str | None = None
        self._has_forgotten = False

    # What others hear of this node.

    def standing(self) -> Standing:
        """Return how this node stands."""
        newborn, record = self._cradle.newborn, self._cradle.record
        held = None
        if record.promise is not None:
            assert self._genesis is not None, "a promise without its genesis"
            held = HeldPromise(
                author=record.promise.author,
                journal_id=record.promise.journal_id,
                lineage=self._genesis.lineage,
                frame_hash=self._genesis.hash,
                voters=self._genesis.voters,
            )
        return Standing(
            members_hash=ZERO_HASH if isinstance(self._members, str) else self._members.hash,
            role=newborn.role,
            file=self._file,
            writer=newborn.writer,
            is_decided=record.is_decided,
            promised=held,
        )

    def ask(self, keys: Collection[PublicKeyBytes]) -> list[BirthEffect]:
        """Ask these peers how they stand; offer them this node's genesis if they must sign it."""
        effects: list[BirthEffect] = []
        effects += self._cradle.send(tuple(keys), BirthAsk(standing=self.standing()))
        effects += self._offer(keys)
        return effects

    def tell_standing(self) -> list[BirthEffect]:
        """Tell everybody that this node stands otherwise than before."""
        answer = BirthAnswer(standing=self.standing())
        return [*self._cradle.send(self._cradle.connected, answer)]

    # Facts.

    def on_members(self, members: Membership | str) -> list[BirthEffect]:
        """Take over the membership that configuration gives now."""
        self._members = members
        return self.tell_standing()

    def on_file(self, file: FileFacts | None) -> list[BirthEffect]:
        """Take over the facts of this node's file."""
        if file == self._file:
            return []
        self._file = file
        return self.tell_standing()

    def on_decided(self) -> list[BirthEffect]:
        """Take over the operator's decision for this node."""
        keep = self._cradle.keep(replace(self._cradle.record, is_decided=True))
        return [keep, *self.tell_standing()]

    def on_connected(self, event: PeerConnected) -> list[BirthEffect]:
        """Forget what an older connection of the peer said, and ask anew."""
        key = event.peer.key
        self._answers.pop(key, None)
        self._offers.pop(key, None)
        self._foreign.pop(key, None)
        self._promises.pop(key, None)
        return self.ask([key])

    def on_gone(self, key: PublicKeyBytes) -> list[BirthEffect]:
        """Drop an offer that cannot be answered; what the peer said of itself stays."""
        self._offers.pop(key, None)
        return []

    def on_surveyed(self, event: ArchiveSurveyed, now: Instant) -> list[BirthEffect]:
        """Take in what the archive has, and the file that may have been restored from it."""
        self._is_surveying = False
        effects = self.on_file(event.file)
        if event.problem is not None:
            self._survey_at = Instant(now + SURVEY_PAUSE)
            return [*effects, *self._report(event.problem)]
        self._survey = event
        return effects

    def on_received(  # noqa: PLR0911  (one for each kind of message)
        self, event: BirthReceived
    ) -> list[BirthEffect]:
        """Take in a message of a connected peer."""
        sender, message = event.sender, event.message
        if self._has_forgotten:
            return []
        match message:
            case BirthAsk():
                effects = self._on_standing(event, message.standing)
                answer = BirthAnswer(standing=self.standing())
                return [*effects, *self._cradle.send({sender}, answer)]
            case BirthAnswer():
                return self._on_standing(event, message.standing)
            case GenesisOffer():
                return self._on_offer(event, message)
            case GenesisPromise():
                return self._on_promise(event, message)
            case Withdraw():
                return self._on_withdraw(sender, message)
            case _:
                return self._on_lineage(sender, message)

    # What follows.

    def advance(  # noqa: PLR0911  (one for each way to go on)
        self, now: Instant
    ) -> list[BirthEffect]:
        """Return what follows from all that is known now."""
        if self._has_forgotten:
            return []
        if self._foreign:
            return self._join_foreign()
        if isinstance(self._members, str):
            self.status = self._members
            return []
        order = self._members.order(self._cradle.newborn.shard)
        decision = decide(
            order, self._cradle.newborn.replication, self._heeded(), self._connected_members()
        )
        match decision:
            case Blocked():
                self._survey = None
                return [*self._withdraw(), *self._report(decision.why)]
            case Wait():
                self._survey = None
                return [*self._wait_for(decision), *self._consider()]
            case Plan() if decision.author == self._cradle.newborn.me:
                return self._author(decision, now)
            case _:
                self._survey, self.problem = None, None
                self.status = f"waiting for the genesis of {decision.author.node_id}"
                return [*self._withdraw(), *self._consider()]

    def _author(self, plan: Plan, now: Instant) -> list[BirthEffect]:
        """Write the genesis of ``plan``, or go on with the one that was written."""
        self.problem = None
        effects: list[BirthEffect] = []
        if self._cradle.record.promise is not None:
            assert self._genesis is not None, "a promise without its genesis"
            if self._genesis.author != self._cradle.key:
                name = self._genesis.config.voters[0].node_id
                self.status = f"waiting for {name} to withdraw its genesis"
                return effects
            if self._is_current(self._genesis, plan):
                return self._complete()
            effects += self._withdraw()
        if self._survey is not None:
            return [*effects, *self._write(plan, self._survey)]
        if not self._is_surveying and (self._survey_at is None or now >= self._survey_at):
            self._is_surveying = True
            self.status = "looking into the archive"
            effects.append(SurveyArchive())
        return effects

    def _write(self, plan: Plan, survey: ArchiveSurveyed) -> list[BirthEffect]:
        """Write the genesis of ``plan``, persist it, and offer it to all who must sign it."""
        assert isinstance(self._members, Membership), "an author without a membership"
        newborn, parent = self._cradle.newborn, survey.parent
        voters = name_voters(plan.voters, self._heeded())
        root, page_size = root_of(self._file)
        is_byzantine = (
            newborn.fault_model == FaultModel.BYZANTINE and len(voters) >= BYZANTINE_VOTERS_MIN
        )
        config = ConfigPayload(
            lineage=survey.lineage,
            parent=(parent.lineage, parent.seq, parent.hash) if parent else None,
            voters=voters,
            page_size=parent.page_size if parent else page_size,
            members_hash=self._members.hash,
            fault_model=FaultModel.BYZANTINE if is_byzantine else FaultModel.CRASH,
            is_forced=parent is not None and parent.is_forced,
        )
        earliest_ns = parent.timestamp_ns + 1 if parent else 0
        genesis = write_genesis(
            config,
            shard=newborn.shard,
            state_root=parent.state_root if parent else root,
            timestamp_ns=TimestampNs(max(survey.timestamp_ns, earliest_ns)),
            salt=survey.salt,
            signer=newborn.signer,
        )
        self._survey, self._genesis = None, genesis
        self._promises.clear()
        promise = Promise(
            author=self._cradle.key, journal_id=newborn.journal_id, genesis=genesis.record
        )
        keep = self._cradle.keep(replace(self._cradle.record, promise=promise))
        return [keep, *self._offer(plan.signers), *self._complete()]

    def _is_current(self, genesis: Genesis, plan: Plan) -> bool:
        """Return whether the genesis that was written is still the one that would be written."""
        assert isinstance(self._members, Membership), "an author without a membership"
        config = genesis.config
        is_same_file = config.parent is not None or (
            (genesis.head.state_root, config.page_size) == root_of(self._file)
        )
        return (
            is_same_file
            and config.members_hash == self._members.hash
            and config.voters == name_voters(plan.voters, self._heeded())
        )

    def _offer(self, keys: Collection[PublicKeyBytes]) -> list[BirthEffect]:
        """Offer this node's genesis to those of ``keys`` whose promise it lacks."""
        genesis = self._genesis
        if genesis is None or genesis.author != self._cradle.key or isinstance(self._members, str):
            return []
        missing = find_missing(genesis, self._order(), self._promises) & set(keys)
        offer = GenesisOffer(genesis=genesis.record, standing=self.standing())
        return [*self._cradle.send(missing - {self._cradle.key}, offer)]

    def _complete(self) -> list[BirthEffect]:
        """Make the lineage known if all have signed its genesis."""
        genesis, newborn = self._genesis, self._cradle.newborn
        assert genesis is not None, "a birth without a genesis"
        missing = find_missing(genesis, self._order(), self._promises) - {newborn.me.key}
        if missing:
            names = [peer.node_id for peer in self._order() if peer.key in missing]
            self.status = f"waiting for the promise of {', '.join(names)}"
            return []
        signed = {**self._promises, newborn.me.key: newborn.signer.sign(genesis.message)}
        known = LineageKnown(genesis=genesis.record, certificate=certify(genesis, signed))
        file = FileFate.ADOPTED if self._file is not None else FileFate.NONE
        is_settled = len(genesis.voters) == 1
        return [self._cradle.keep(adopt(self._cradle.record, known, file, is_settled=is_settled))]

    def _withdraw(self) -> list[BirthEffect]:
        """Take back this node's own genesis, if it wrote one."""
        genesis, record = self._genesis, self._cradle.record
        if genesis is None or genesis.author != self._cradle.key:
            return []
        withdraw = Withdraw(
            lineage=genesis.lineage,
            frame_hash=genesis.hash,
            signature=self._cradle.newborn.signer.sign(genesis.withdrawal),
        )
        withdrawn = (*record.withdrawn, withdraw)[-WITHDRAWN_MAX:]
        keep = self._cradle.keep(replace(record, promise=None, withdrawn=withdrawn))
        self._genesis = None
        self._promises.clear()
        return [keep, *self._cradle.send(self._cradle.connected, withdraw)]

    def _consider(self) -> list[BirthEffect]:
        """Sign one of the geneses that are offered, if `engine.consent` allows it."""
        for key, offer in sorted(self._offers.items()):
            journal_id = self._cradle.connected[key].journal_id
            if not self._is_free_for(offer, journal_id):
                continue
            objection = find_objection(self._situation(), offer, journal_id)
            if objection is not None:
                self.status = f"the genesis of {offer.config.voters[0].node_id}: {objection}"
                continue
            promise = Promise(author=key, journal_id=journal_id, genesis=offer.record)
            keep = self._cradle.keep(replace(self._cradle.record, promise=promise))
            self._genesis = offer
            self._offers.clear()
            self.status = f"promised the genesis of {offer.config.voters[0].node_id}"
            return [keep, *self._sign(offer)]
        return []

    def _is_free_for(self, offer: Genesis, journal_id: JournalId) -> bool:
        """Return whether no promise stands against signing ``offer``."""
        promise = self._cradle.record.promise
        if promise is None:
            return True
        assert self._genesis is not None, "a promise without its genesis"
        return may_replace(promise, self._genesis, offer, journal_id)

    def _sign(self, genesis: Genesis) -> list[BirthEffect]:
        """Send the author the promise, which is durable."""
        promise = GenesisPromise(
            lineage=genesis.lineage,
            frame_hash=genesis.hash,
            signature=self._cradle.newborn.signer.sign(genesis.message),
        )
        return [*self._cradle.send({genesis.author}, promise)]

    # Messages.

    def _on_standing(self, event: BirthReceived, standing: Standing) -> list[BirthEffect]:
        """Take in how a peer stands, and free it of a promise that this node knows to be void."""
        sender = event.sender
        self._answers[sender] = Answer(journal_id=event.journal_id, standing=standing)
        self._foreign.pop(sender, None)
        held = standing.promised
        if held is None or held.author != self._cradle.key:
            return self._free_old_promises()
        if held.journal_id != self._cradle.newborn.journal_id:
            return self._free_old_promises()
        if self._genesis is not None and held.frame_hash == self._genesis.hash:
            return self._offer([sender])
        for withdraw in self._cradle.record.withdrawn:
            if withdraw.frame_hash == held.frame_hash:
                return [*self._cradle.send({sender}, withdraw)]
        self._has_forgotten = True
        self.status = "a peer holds a genesis of this journal, which the journal has forgotten"
        return [NewJournalNeeded(why=self.status)]

    def _free_old_promises(self) -> list[BirthEffect]:
        """Withdraw what this key wrote with a lost journal, once all its voters have answered.

        The lineage could be complete, and one of them know it, until then.
        """
        newborn = self._cradle.newborn
        effects: list[BirthEffect] = []
        for sender, answer in sorted(self._answers.items()):
            held = answer.standing.promised
            if held is None or held.author != newborn.me.key:
                continue
            is_asked = set(held.voters) - {newborn.me.key} <= self._answers.keys()
            if held.journal_id == newborn.journal_id or not is_asked:
                continue
            message = Scope(held.lineage, newborn.shard).withdraw(held.frame_hash)
            withdraw = Withdraw(
                lineage=held.lineage,
                frame_hash=held.frame_hash,
                signature=newborn.signer.sign(message),
            )
            effects += self._cradle.send({sender}, withdraw)
        return effects

    def _on_offer(self, event: BirthReceived, message: GenesisOffer) -> list[BirthEffect]:
        """Take in a genesis; `_consider` decides about it."""
        sender = event.sender
        effects = self._on_standing(event, message.standing)
        try:
            offer = self._read(message.genesis)
        except CorruptionError as error:
            return [*effects, ReportBirth(what=str(error), peer=sender)]
        if offer.author != sender:
            what = f"a genesis of {offer.author.hex()} was offered by somebody else"
            return [*effects, ReportBirth(what=what, peer=sender)]
        if self._genesis is not None and self._genesis.hash == offer.hash:
            return [*effects, *self._sign(offer)]
        if self._is_free_for(offer, event.journal_id):
            self._offers[sender] = offer
            return effects
        answer = BirthAnswer(standing=self.standing())
        return [*effects, *self._cradle.send({sender}, answer)]

    def _on_promise(self, event: BirthReceived, message: GenesisPromise) -> list[BirthEffect]:
        """Count a promise for this node's genesis."""
        genesis, sender = self._genesis, event.sender
        if genesis is None or genesis.author != self._cradle.key:
            return []
        if (message.lineage, message.frame_hash) != (genesis.lineage, genesis.hash):
            return []  # for one that was withdrawn since
        journals = {voter.key: voter.journal_id for voter in genesis.config.voters}
        if journals.get(sender, event.journal_id) != event.journal_id:
            return []  # its answer, with the new journal, makes this genesis void
        if not self._cradle.newborn.verify(sender, message.signature, genesis.message):
            return [ReportBirth(what="a promise with a wrong signature", peer=sender)]
        self._promises[sender] = message.signature
        return []

    def _on_withdraw(self, sender: PublicKeyBytes, message: Withdraw) -> list[BirthEffect]:
        """Forget the promise if its author takes the genesis back."""
        record, genesis = self._cradle.record, self._genesis
        offer = self._offers.get(sender)
        if offer is not None and offer.hash == message.frame_hash:
            del self._offers[sender]
        if record.promise is None or genesis is None or record.promise.author != sender:
            return []
        if message.frame_hash != genesis.hash:
            return []
        if not self._cradle.newborn.verify(sender, message.signature, genesis.withdrawal):
            return [ReportBirth(what="a withdrawal with a wrong signature", peer=sender)]
        keep = self._cradle.keep(replace(record, promise=None))
        self._genesis = None
        return [keep, *self.tell_standing()]

    def _on_lineage(self, sender: PublicKeyBytes, message: LineageKnown) -> list[BirthEffect]:
        """Join the lineage that a peer knows, or note it where it was not born over this M."""
        newborn = self._cradle.newborn
        try:
            genesis = self._read(message.genesis)
            check_complete(genesis, message.certificate, newborn.verify)
        except CorruptionError as error:
            return [ReportBirth(what=str(error), peer=sender)]
        is_ours = isinstance(self._members, Membership) and (
            genesis.config.members_hash == self._members.hash and not genesis.config.is_forced
        )
        if is_ours or (self._genesis is not None and self._genesis.hash == genesis.hash):
            return self._join(genesis, message)
        # Kept when the peer is gone: that it exists is enough to write no genesis.
        self._foreign[sender] = (genesis, message)
        return []

    # Joining.

    def _join_foreign(self) -> list[BirthEffect]:
        """Join the lineage that peers have, if they have one and nothing stands against it."""
        names = sorted({genesis.lineage.hex() for genesis, _ in self._foreign.values()})
        if len(names) > 1:
            return self._report(
                f"peers follow {len(names)} lineages of this shard: {', '.join(names)}; empty the "
                "data directory of those that shall be dropped"
            )
        effects = self._withdraw()
        if self._cradle.record.promise is not None:
            self.status = "a lineage exists, but a genesis is promised that must be withdrawn first"
            return effects
        silent = set(self._cradle.connected) - set(self._answers) - set(self._foreign)
        if silent:
            ids = sorted(self._cradle.connected[key].peer.node_id for key in silent)
            self.status = f"a lineage exists; waiting for the answer of {', '.join(ids)}"
            return effects
        genesis, message = next(iter(self._foreign.values()))
        return [*effects, *self._join(genesis, message)]

    def _join(self, genesis: Genesis, message: LineageKnown) -> list[BirthEffect]:
        # Others than voters are told only what is settled.
        is_settled = self._cradle.key not in genesis.voters
        file = self._file_fate(genesis)
        return [self._cradle.keep(adopt(self._cradle.record, message, file, is_settled=is_settled))]

    def _file_fate(self, genesis: Genesis) -> FileFate:
        """Return what becomes of this node's file under somebody else's genesis."""
        file = self._file
        if file is None:
            return FileFate.NONE
        found = (genesis.head.state_root, genesis.config.page_size)
        if genesis.config.parent is None and root_of(file) == found:
            return FileFate.ADOPTED
        answer = self._answers.get(genesis.author)
        is_decided = answer is not None and answer.standing.is_decided
        is_promised = self._genesis is not None and self._genesis.hash == genesis.hash
        if not file.has_rows or is_decided or is_promised:
            return FileFate.KEPT_ASIDE
        return FileFate.REFUSED

    # Views of what is known.

    def _read(self, record: bytes) -> Genesis:
        newborn = self._cradle.newborn
        return read_genesis(record, newborn.shard, newborn.verify)

    def _order(self) -> tuple[Peer, ...]:
        assert isinstance(self._members, Membership), "an order without a membership"
        return self._members.order(self._cradle.newborn.shard)

    def _heeded(self) -> dict[PublicKeyBytes, Answer]:
        """Return the answers of members that count the same members, this node's own included."""
        mine = self.standing()
        heeded = {
            peer.key: answer
            for peer in self._order()
            if (answer := self._answers.get(peer.key)) is not None
            and answer.standing.members_hash == mine.members_hash
        }
        newborn = self._cradle.newborn
        heeded[newborn.me.key] = Answer(journal_id=newborn.journal_id, standing=mine)
        return heeded

    def _connected_members(self) -> frozenset[PublicKeyBytes]:
        return frozenset(peer.key for peer in self._order() if peer.key in self._cradle.connected)

    def _situation(self) -> Situation:
        assert isinstance(self._members, Membership), "a consent without a membership"
        newborn = self._cradle.newborn
        return Situation(
            me=newborn.me,
            journal_id=newborn.journal_id,
            members=self._members,
            order=self._order(),
            replication=newborn.replication,
            answers=self._heeded(),
            connected=self._connected_members(),
        )

    def _wait_for(self, decision: Wait) -> list[BirthEffect]:
        """Say who must answer first, and report who answered for another membership."""
        strangers = [
            peer.node_id
            for peer in decision.missing
            if (answer := self._answers.get(peer.key)) is not None
            and answer.standing.members_hash != ZERO_HASH
        ]
        if strangers:
            return self._report(
                f"{', '.join(strangers)} and this node count different members: set BASE_PEERS and "
                "BASE_BOOTSTRAP_EXPECT the same everywhere"
            )
        self.problem = None
        silent = ", ".join(peer.node_id for peer in decision.missing)
        self.status = f"waiting for the answer of {silent}"
        return []

    def _report(self, why: str) -> list[BirthEffect]:
        """Tell the operator, once as long as it is the same."""
        is_new = why != self.problem
        self.status = self.problem = why
        return [ReportBirth(what=why)] if is_new else []
