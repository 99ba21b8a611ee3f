----------------------------- MODULE TraceShard -----------------------------
(***************************************************************************)
(* A recorded run of the implementation, held to Shard.tla.                *)
(*                                                                         *)
(* The module TraceData is generated from a trace (basenet/testing/        *)
(* tlatrace.py): frames and nodes are numbered, frame 0 is the genesis and *)
(* node numbers follow from 1. Event i must be the action of its name in   *)
(* the state that the events before it led to, with the content that the   *)
(* specification gives to its message. If it is not, the state has no      *)
(* successor: TLC reports a deadlock (return code 11), and the last state  *)
(* shows in i which event it was. At the end the properties are checked.   *)
(*                                                                         *)
(* Stricter than Shard.tla alone: a NewView counts for a start, and a      *)
(* proposal for a vote, only if an event tells that it was sent; and a     *)
(* node must hold the frames that it speaks of.                            *)
(***************************************************************************)
EXTENDS Shard, TraceData

VARIABLES
    i,         \* the event to come
    said,      \* NewViews that were sent
    proposed,  \* proposals that were sent: <<epoch, view, frame>>
    held       \* held[n]: frames that n stored

traceVars == <<ballot, votes, promises, starts, refusals, i, said, proposed, held>>

-----------------------------------------------------------------------------
(* The frames of the run. FrameTable[x] = <<parent, height, epoch, view, is CONFIG>>; TableOf gives *)
(* the genesis the same form. Electorates[x] is defined for CONFIGs whose epoch began.              *)

TableOf(x) == IF x = 0 THEN <<0, GenesisHeight, 0, 0, TRUE>> ELSE FrameTable[x]
TraceFrames == 0..Len(FrameTable)
TraceGenesis == 0
TraceParent(x) == TableOf(x)[1]
TraceHeight(x) == TableOf(x)[2]
TraceEpochOf(x) == TableOf(x)[3]
TraceViewOf(x) == TableOf(x)[4]
TraceIsConfig(x) == TableOf(x)[5]
RECURSIVE LineOf(_)
LineOf(x) == IF x = 0 THEN {0} ELSE LineOf(FrameTable[x][1]) \cup {x}
LineTable == [x \in TraceFrames |-> LineOf(x)]
TraceLine(x) == LineTable[x]
TraceVotersOf(g) == Electorates[g]
TraceIsTwoPhase(g) == IsByzantineMode
TraceLeaderOf(g, v) == Electorates[g][(v % Len(Electorates[g])) + 1]
TraceNode == 1..Nodes
TraceViews == 0..MaxView

-----------------------------------------------------------------------------
event == Trace[i]
me == event.node
now == ballot[event.node]

Holds(n, x) == Above(ballot[n].final.frame, x) \subseteq held[n]

(* Everything that an action of Shard.tla does not speak of stays. *)
Quiet == UNCHANGED <<said, proposed, held>>
Still == UNCHANGED vars

OnFrame ==
    /\ held' = [held EXCEPT ![me] = @ \cup {event.frame}]
    /\ LET a == Author(event.frame)
       IN  IF a \in Byzantine \/ (\E n \in Honest : event.frame \in held[n]) THEN TRUE
           ELSE /\ a = me /\ HasVoted(now)
                /\ now.epoch = EpochOf(event.frame) /\ now.view = ViewOf(event.frame)
    /\ Still /\ UNCHANGED <<said, proposed>>

OnEnter == Enter(me, event.view) /\ Quiet

(* Who knows that something is final in its own view asks for a proposal: no promise. *)
OnNewView ==
    /\ event.view = now.view /\ event.high = High(now)
    /\ event.proof = IF IsTwoPhase(now.genesis) /\ event.high.view >= 0 THEN event.high ELSE None
    /\ IF event.high.view < now.view
       THEN NewView(me) /\ said' = said \cup {Promise(me, now)}
       ELSE Still /\ UNCHANGED said
    /\ UNCHANGED <<proposed, held>>

(* The NewViews that a start names were sent, by a quorum, and give the anchor. *)
IsHighOfLiar(m) ==
    m = At(-1, now.genesis) \/ m \in Provable(now.genesis, now.epoch, now.view)
IsJustified ==
    /\ \A p, r \in event.promises : p = r \/ p.node # r.node
    /\ {p.node : p \in event.promises} \subseteq Voters(now.genesis)
    /\ Cardinality(event.promises) >= Quorum(now.genesis)
    /\ \A p \in event.promises :
          IF p.node \in Byzantine THEN IsHighOfLiar(p.high)
          ELSE [node |-> p.node, epoch |-> now.epoch, view |-> now.view, high |-> p.high] \in said
    /\ \E R \in SUBSET Refused(now.genesis, now.epoch) :
          event.anchor = Anchor(event.promises, R)

OnStart ==
    /\ event.view = now.view
    /\ IF now.view = 0 THEN event.anchor = At(-1, now.genesis) ELSE IsJustified = TRUE
    /\ Holds(me, event.frame)
    /\ Start(me, event.anchor, event.frame) /\ Quiet

(* The first proposal of a frame is its sealing; a start has voted already, and so has a repetition. *)
OnPropose ==
    /\ event.view = now.view /\ event.anchor = now.anchor
    /\ LeaderOf(now.genesis, now.view) = me
    /\ IF now.voted = At(now.view, event.frame)
       THEN Still
       ELSE Holds(me, event.frame) /\ Seal(me, event.frame)
    /\ IsBelow(event.prev, event.frame)
    /\ proposed' = proposed \cup {<<now.epoch, now.view, event.frame>>}
    /\ UNCHANGED <<said, held>>

(* The anchor of a proposal is its leader's. A liar's proposals are in no trace: then it may be any *)
(* that is justified and allows the vote; which one makes no difference for later votes.            *)
PossibleAnchors ==
    IF LeaderOf(now.genesis, now.view) \notin Byzantine
    THEN {s.anchor : s \in {t \in starts : t.epoch = now.epoch /\ t.view = now.view}}
    ELSE IF now.anchor # None THEN {now.anchor}
    ELSE {a \in Anchors(now.genesis, now.epoch, now.view) : IsAcceptable(me, now, a, event.frame)}

IsAskedFor ==
    \/ LeaderOf(now.genesis, now.view) \in Byzantine
    \/ <<now.epoch, now.view, event.frame>> \in proposed

OnVote ==
    /\ event.view = now.view /\ Quiet
    /\ IF Vote(me, now.epoch, now.view, event.phase, event.frame) \in votes
       THEN /\ Still
            /\ IF event.phase = FirstPhase(now.genesis) THEN HasVoted(now)
                                                        ELSE now.prepared.view = now.view
       ELSE /\ event.phase = FirstPhase(now.genesis)
            /\ IsAskedFor = TRUE /\ Holds(me, event.frame)
            /\ IF HasVoted(now) /\ Height(event.frame) <= Height(now.voted.frame)
               THEN FollowBelow(me, event.frame)
               ELSE /\ PossibleAnchors # {}
                    /\ Follow(me, now.view, Highest(PossibleAnchors), event.frame)

OnPrepared == event.cview = now.view /\ Holds(me, event.frame) /\ Prepare(me, event.frame) /\ Quiet

OnFinal ==
    /\ Cardinality(event.signers) >= Quorum(now.genesis)
    /\ event.signers \subseteq
          Signers(now.genesis, now.epoch, event.cview, COMMIT, event.frame) \cup Liars(now.genesis)
    /\ Holds(me, event.frame)
    /\ IsBelow(now.final.frame, event.frame)
    /\ Learn(me, event.cview, event.frame) /\ Quiet

OnRefuse == Refuse(me, event.frame) /\ Quiet

OnEpoch ==
    /\ NextEpoch(me) /\ Quiet
    /\ ballot'[me].epoch = event.epoch
    /\ VotersOf(ballot'[me].genesis) = event.voters

(* A restart must find what the ballot was. *)
OnRestart ==
    /\ event.view = now.view /\ event.voted = now.voted
    /\ event.prepared = now.prepared /\ event.final = now.final
    /\ Still /\ Quiet

Replay ==
    /\ i <= Len(Trace)
    /\ event.ev # "Epoch" => event.epoch = now.epoch
    /\ "frame" \in DOMAIN event => event.frame \in TraceFrames    \* one that an event told of
    /\ i' = i + 1
    /\ CASE event.ev = "Frame"    -> OnFrame
         [] event.ev = "Enter"    -> OnEnter
         [] event.ev = "NewView"  -> OnNewView
         [] event.ev = "Start"    -> OnStart
         [] event.ev = "Propose"  -> OnPropose
         [] event.ev = "Vote"     -> OnVote
         [] event.ev = "Prepared" -> OnPrepared
         [] event.ev = "Final"    -> OnFinal
         [] event.ev = "Refuse"   -> OnRefuse
         [] event.ev = "Epoch"    -> OnEpoch
         [] event.ev = "Restart"  -> OnRestart
         [] event.ev = "Nothing"  -> Still /\ Quiet    \* a frame that stands on nothing

TraceInit ==
    /\ Init /\ i = 1 /\ said = {} /\ proposed = {} /\ held = [n \in Honest |-> {}]
TraceNext == Replay \/ (i > Len(Trace) /\ UNCHANGED traceVars)
TraceSpec == TraceInit /\ [][TraceNext]_traceVars

-----------------------------------------------------------------------------
(* Comparing all pairs of certificates in each state costs too much, and votes are never unsaid. *)
SafeAtTheEnd ==
    i > Len(Trace) =>
        Agreement /\ OrphansStayDead /\ OneChainPerView /\ OneStartPerView /\ KnownFinalIsFinal
=============================================================================
