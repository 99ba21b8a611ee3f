------------------------------- MODULE Shard -------------------------------
(***************************************************************************)
(* How the voters of one shard agree on one chain of frames.               *)
(*                                                                         *)
(* A frame names its parent by hash, so a frame stands for the whole line  *)
(* of frames down to the genesis, and a vote for a frame accepts that      *)
(* line: votes are cumulative. One leader per (epoch, view) seals frames.  *)
(* Two modes, chosen by the CONFIG that an epoch starts from:              *)
(*                                                                         *)
(*   crash      one phase: COMMIT votes, quorum n \div 2 + 1.              *)
(*   Byzantine  two phases: PREPARE votes, then COMMIT votes for what has  *)
(*              a PREPARE certificate, quorum (n + f) \div 2 + 1 with      *)
(*              f = (n - 1) \div 3.                                        *)
(*                                                                         *)
(* A quorum of COMMIT votes for one frame in one view is a FINAL           *)
(* certificate: the frame and its line are final for ever.                 *)
(*                                                                         *)
(* What a voter must not forget is its ballot. An action changes the       *)
(* ballot and speaks in one step, because the implementation makes the     *)
(* ballot durable first and speaks afterwards: to die between the two      *)
(* looks to everybody else like a message that was lost. Messages are      *)
(* never taken out of the sets that hold them; that somebody does not act  *)
(* on one is how loss, delay and reordering look. What Byzantine nodes say *)
(* is not stored at all: they may have said anything at any time, except   *)
(* that they cannot sign for others, so that a certificate still needs     *)
(* honest votes and a frame of an honest leader must have been sealed.     *)
(*                                                                         *)
(* Frames are abstract here. MCShard.tla makes them sequences, so that     *)
(* TLC can enumerate them; TraceShard.tla takes them from a recorded run.  *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, Sequences

CONSTANTS
    Node,          \* everybody who ever votes or learns
    Byzantine,     \* those among them that may say anything
    Frames,        \* all frames that can be sealed in this model, and Genesis
    Genesis,       \* the frame that the lineage begins with: the CONFIG of epoch 1
    Views,         \* the views that may be entered: 0 .. some number
    Parent(_),     \* of a frame: the frame before it
    Height(_),     \* of a frame: its seq
    EpochOf(_),    \* of a frame: the epoch in which it was first proposed; 0 for Genesis
    ViewOf(_),     \* of a frame: the view in which it was first proposed
    Line(_),       \* of a frame: the set of the frames at and below it
    IsConfig(_),   \* of a frame: whether it ends its epoch
    VotersOf(_),   \* of a CONFIG: the voters of the epoch that it begins, in their order
    IsTwoPhase(_), \* of a CONFIG: whether that epoch is in the Byzantine mode
    LeaderOf(_, _) \* of a CONFIG and a view: who leads

(***************************************************************************)
(* Rules that a model may break, to show that the properties need them.    *)
(* The protocol is Durable = Fields and the rest TRUE, but MayRefuse which *)
(* only switches the refusals on (they cost states).                       *)
(***************************************************************************)
CONSTANTS
    Durable,          \* the fields of the ballot that survive a restart
    HasSecondPhase,   \* FALSE: the Byzantine mode makes do with COMMIT votes
    IsHighestAnchor,  \* FALSE: a leader starts at the lowest of what it was told
    HasFirstVote,     \* FALSE: one may commit below one's first vote of the view
    IsSalvageYoung,   \* FALSE: frames older than the anchor may be salvaged above it
    MayRefuse,        \* TRUE: voters may refuse frames with a wrong state root (crash mode)
    RefusersMissing   \* 0: n - q + 1 refusals bend a high; k: k fewer do

VARIABLES
    ballot,     \* ballot[n]: the durable facts of honest node n
    votes,      \* every vote that an honest node cast
    promises,   \* every NewView: "I vote in no view below this one; the highest I accepted is .."
    starts,     \* what honest leaders fixed as the anchor of their views
    refusals    \* every Refuse: "I have not voted and shall never vote for this frame"

vars == <<ballot, votes, promises, starts, refusals>>

Honest == Node \ Byzantine
Fields == {"view", "voted", "vstart", "anchor", "prepared", "final"}

PREPARE == 1
COMMIT  == 2

-----------------------------------------------------------------------------
(* Marks: a place on a chain, and the view in which a vote or a certificate reached it. *)

None == [view |-> -2, frame |-> Genesis]
At(v, x) == [view |-> v, frame |-> x]

IsLower(m, o) == \/ m.view < o.view
                 \/ m.view = o.view /\ Height(m.frame) < Height(o.frame)
Highest(S) == CHOOSE m \in S : \A o \in S : ~IsLower(m, o)
Lowest(S)  == CHOOSE m \in S : \A o \in S : ~IsLower(o, m)

IsBelow(x, y) == x \in Line(y)               \* at or below
Above(x, y) == Line(y) \ Line(x)             \* the frames above x, up to y
IsEarlier(e, v, f, w) == e < f \/ (e = f /\ v < w)

-----------------------------------------------------------------------------
(* Epochs: g is the CONFIG that the epoch begins with. *)

Voters(g) == {VotersOf(g)[i] : i \in 1..Len(VotersOf(g))}
Size(g) == Len(VotersOf(g))
Quorum(g) == IF IsTwoPhase(g) THEN (Size(g) + ((Size(g) - 1) \div 3)) \div 2 + 1
                              ELSE Size(g) \div 2 + 1
Liars(g) == Voters(g) \cap Byzantine
FirstPhase(g) == IF IsTwoPhase(g) /\ HasSecondPhase THEN PREPARE ELSE COMMIT

(* Where epoch e began on the line of x. *)
Base(e, x) == CHOOSE g \in Line(x) : IsConfig(g) /\ EpochOf(g) = e - 1
(* Nothing of an epoch stands above the CONFIG that ends it. *)
IsWhole(e, x) == \A y \in Line(x) : IsConfig(y) /\ EpochOf(y) = e => y = x

BeginEpoch(e, g) ==
    [epoch |-> e, genesis |-> g, view |-> 0, voted |-> None, vstart |-> -1,
     anchor |-> None, prepared |-> None, final |-> At(-1, g)]

-----------------------------------------------------------------------------
(* Votes and certificates. *)

Vote(n, e, v, p, x) == [node |-> n, epoch |-> e, view |-> v, phase |-> p, frame |-> x]

Signers(g, e, v, p, x) == {n \in Voters(g) : Vote(n, e, v, p, x) \in votes}
IsCertified(g, e, v, p, x) ==
    Cardinality(Signers(g, e, v, p, x) \cup Liars(g)) >= Quorum(g)

(* What a liar can prove to have accepted in a view below w: anything that has a certificate. *)
Provable(g, e, w) ==
    {At(r.view, r.frame) : r \in {s \in votes : s.epoch = e /\ s.view < w
                                    /\ IsCertified(g, e, s.view, s.phase, s.frame)}}

(* A frame is there to be proposed if its author sealed it. *)
Author(x) == LeaderOf(Base(EpochOf(x), x), ViewOf(x))
IsSealed(x) ==
    \/ x = Genesis
    \/ Author(x) \in Byzantine
    \/ \E r \in votes : /\ r.node = Author(x) /\ r.epoch = EpochOf(x) /\ r.view = ViewOf(x)
                        /\ IsBelow(x, r.frame)

-----------------------------------------------------------------------------
(* Views: the promise of whoever enters one, and where it may start. *)

High(b) == Highest({b.final, IF FirstPhase(b.genesis) = PREPARE THEN b.prepared ELSE b.voted})

Promise(n, b) == [node |-> n, epoch |-> b.epoch, view |-> b.view, high |-> High(b)]

(* What enough voters refused never was final and never will be, so a high through it tells only *)
(* about what is below it.                                                                       *)
Refusers(e, x) == {n \in Node : [node |-> n, epoch |-> e, frame |-> x] \in refusals}
Refused(g, e) ==
    IF ~MayRefuse THEN {}
    ELSE {x \in {r.frame : r \in refusals} :
            Cardinality(Refusers(e, x)) >= Size(g) - Quorum(g) + 1 - RefusersMissing}
Bend(m, R) ==
    LET through == Line(m.frame) \cap R
    IN  IF through = {} THEN m
        ELSE At(m.view, Parent(CHOOSE x \in through : \A y \in through : Height(x) <= Height(y)))

(* The anchor that the promises of P, together with the refusals of R, justify. *)
Anchor(P, R) ==
    LET highs == {Bend(p.high, R) : p \in P}
    IN  IF IsHighestAnchor THEN Highest(highs) ELSE Lowest(highs)
IsOutdone(m, o) == IF IsHighestAnchor THEN ~IsLower(o, m) ELSE ~IsLower(m, o)

(* All anchors that some quorum justifies for view w: each mark m such that m was promised and       *)
(* enough nodes, the liars among them, promised nothing that would come before it. A liar's promise *)
(* is whatever it can prove, or of no account.                                                       *)
Anchors(g, e, w) ==
    IF w = 0 THEN {At(-1, g)}
    ELSE LET all == {p \in promises : p.epoch = e /\ p.view = w /\ p.node \in Voters(g)}
             lies == IF Liars(g) = {} THEN {} ELSE Provable(g, e, w)
             humble(m, R) == {p.node : p \in {o \in all : IsOutdone(Bend(o.high, R), m)}}
             of(R) == {m \in {Bend(p.high, R) : p \in all} \cup lies :
                           Cardinality(humble(m, R) \cup Liars(g)) >= Quorum(g)}
         IN  UNION {of(R) : R \in SUBSET Refused(g, e)}

Entered(b, w) == [b EXCEPT !.view = w, !.vstart = -1, !.anchor = None]
HasVoted(b) == b.voted.view = b.view

-----------------------------------------------------------------------------
Init ==
    /\ ballot = [n \in Honest |-> BeginEpoch(1, Genesis)]
    /\ votes = {} /\ promises = {} /\ starts = {} /\ refusals = {}

(* n turns to view w, for whatever reason (a quorum of wishes, a message of its leader, a           *)
(* certificate of it), and tells its leader what it accepted. A NewView that is not sent, and one   *)
(* that nobody acts on, are the same thing.                                                         *)
Enter(n, w) ==
    LET b == Entered(ballot[n], w)
    IN  /\ w \in Views /\ w > ballot[n].view
        /\ ballot' = [ballot EXCEPT ![n] = b]
        /\ promises' = IF High(b).view < w THEN promises \cup {Promise(n, b)} ELSE promises
        /\ UNCHANGED <<votes, starts, refusals>>

(* n repeats its promise, which may tell more by now: it learned what is final. *)
NewView(n) ==
    LET b == ballot[n]
    IN  /\ b.view > 0 /\ ~HasVoted(b) /\ High(b).view < b.view
        /\ promises' = promises \cup {Promise(n, b)}
        /\ UNCHANGED <<ballot, votes, starts, refusals>>

(* Where an action says P = TRUE, TLC takes P as one fact. Otherwise it would make a step of its own  *)
(* of each way in which P is true, and find later that all of them are the same one.                 *)

(* May node n with ballot b, now in view v = b.view, vote for y in a chain that starts at anchor a? *)
IsAcceptable(n, b, a, y) ==
    /\ n \in Voters(b.genesis)
    /\ b.anchor \in {None, a}                              \* one anchor per view
    /\ IsBelow(a.frame, y) /\ IsBelow(b.final.frame, y)    \* linked, and through the anchor
    /\ IsWhole(b.epoch, y)
    /\ \A x \in Above(a.frame, y) :                        \* nothing that may be an orphan already
          x \in Frames /\ EpochOf(x) = b.epoch /\ ViewOf(x) <= b.view
          /\ (IsSalvageYoung => ViewOf(x) >= a.view)
    /\ HasVoted(b) =>          \* one chain per view, unless another one of it became final
          /\ y # b.voted.frame
          /\ IsBelow(b.voted.frame, y) \/ Height(b.final.frame) > Height(b.voted.frame)
          /\ \A x \in Line(y) \ (Line(b.voted.frame) \cup Line(b.final.frame)) : ViewOf(x) = b.view
    /\ \A r \in refusals : r.node = n /\ r.epoch = b.epoch =>
          ~(IsBelow(r.frame, y) /\ ~IsBelow(r.frame, b.final.frame))

(* The ballot of one who votes for y. *)
Cast(b, a, y) ==
    [b EXCEPT !.voted = At(b.view, y), !.anchor = a,
              !.vstart = IF HasVoted(b) THEN @ ELSE Height(y)]

(* The leader fixes where its view starts, once and for all, and votes for the first end. In the    *)
(* Byzantine mode it may keep what it had voted for above the anchor, if that is young enough.      *)
Start(n, a, y) ==
    LET b == ballot[n]
    IN  /\ LeaderOf(b.genesis, b.view) = n /\ ~HasVoted(b) /\ b.anchor = None
        /\ b.view = 0 => b.voted = None /\ b.final = At(-1, b.genesis)
        /\ \/ y = a.frame
           \/ IsTwoPhase(b.genesis) /\ IsBelow(y, b.voted.frame)
        /\ IsAcceptable(n, b, a, y) = TRUE
        /\ ballot' = [ballot EXCEPT ![n] = Cast(b, a, y)]
        /\ votes' = votes \cup {Vote(n, b.epoch, b.view, FirstPhase(b.genesis), y)}
        /\ starts' = starts \cup {[epoch |-> b.epoch, view |-> b.view, anchor |-> a]}
        /\ UNCHANGED <<promises, refusals>>

(* The leader seals new frames on its chain up to y, votes for y, and by that proposes it. *)
Seal(n, y) ==
    LET b == ballot[n]
    IN  /\ LeaderOf(b.genesis, b.view) = n /\ HasVoted(b)
        /\ IsAcceptable(n, b, b.anchor, y) = TRUE
        /\ ballot' = [ballot EXCEPT ![n] = Cast(b, b.anchor, y)]
        /\ votes' = votes \cup {Vote(n, b.epoch, b.view, FirstPhase(b.genesis), y)}
        /\ UNCHANGED <<promises, starts, refusals>>

(* Has the leader of (e, v) proposed y with the anchor a? An honest one proposes what it voted for; *)
(* a Byzantine one anything for which it can show a justification.                                  *)
IsProposed(g, e, v, a, y) ==
    LET l == LeaderOf(g, v)
    IN  IF l \in Byzantine
        THEN a \in Anchors(g, e, v) /\ \A x \in Above(a.frame, y) : IsSealed(x)
        ELSE /\ [epoch |-> e, view |-> v, anchor |-> a] \in starts
             /\ Vote(l, e, v, FirstPhase(g), y) \in votes

(* n follows the proposal (a, y) of the leader of view v, which may be higher than its own view. *)
Follow(n, v, a, y) ==
    LET b == IF v = ballot[n].view THEN ballot[n] ELSE Entered(ballot[n], v)
    IN  /\ v \in Views /\ v >= ballot[n].view /\ LeaderOf(b.genesis, v) # n
        /\ IsAcceptable(n, b, a, y) = TRUE
        /\ IsProposed(b.genesis, b.epoch, v, a, y) = TRUE
        /\ ballot' = [ballot EXCEPT ![n] = Cast(b, a, y)]
        /\ votes' = votes \cup {Vote(n, b.epoch, v, FirstPhase(b.genesis), y)}
        /\ UNCHANGED <<promises, starts, refusals>>

(* The chain that n follows: what it voted for in its view, and what is final. *)
IsOnChain(b, x) == IsBelow(x, b.voted.frame) \/ IsBelow(x, b.final.frame)

(* n is asked for a vote on y below what it voted for in this view: a proposal came late or twice.   *)
(* It gives it, unless its first vote of the view was higher.                                        *)
FollowBelow(n, y) ==
    LET b == ballot[n]
    IN  /\ HasVoted(b) /\ LeaderOf(b.genesis, b.view) # n /\ n \in Voters(b.genesis)
        /\ IsOnChain(b, y) = TRUE /\ Height(y) <= Height(b.voted.frame)
        /\ HasFirstVote => Height(y) >= b.vstart
        /\ IsProposed(b.genesis, b.epoch, b.view, b.anchor, y) = TRUE
        /\ votes' = votes \cup {Vote(n, b.epoch, b.view, FirstPhase(b.genesis), y)}
        /\ UNCHANGED <<ballot, promises, starts, refusals>>

(* n sees a PREPARE certificate for x on its chain, locks on it and votes COMMIT. *)
Prepare(n, x) ==
    LET b == ballot[n]
    IN  /\ FirstPhase(b.genesis) = PREPARE /\ n \in Voters(b.genesis)
        /\ HasVoted(b) /\ IsOnChain(b, x) = TRUE
        /\ HasFirstVote => Height(x) >= b.vstart
        /\ IsCertified(b.genesis, b.epoch, b.view, PREPARE, x)
        /\ ~IsLower(At(b.view, x), b.prepared)
        /\ ballot' = [ballot EXCEPT ![n].prepared = At(b.view, x)]
        /\ votes' = votes \cup {Vote(n, b.epoch, b.view, COMMIT, x)}
        /\ UNCHANGED <<promises, starts, refusals>>

(* n learns that x is final by the votes of view v. *)
IsNews(b, v, x) ==
    /\ IsCertified(b.genesis, b.epoch, v, COMMIT, x)
    /\ \/ Height(x) > Height(b.final.frame)
       \/ Height(x) = Height(b.final.frame) /\ v > b.final.view
Learned(b, v, x) == [(IF v > b.view THEN Entered(b, v) ELSE b) EXCEPT !.final = At(v, x)]

Learn(n, v, x) ==
    /\ IsNews(ballot[n], v, x) = TRUE
    /\ ballot' = [ballot EXCEPT ![n] = Learned(@, v, x)]
    /\ UNCHANGED <<votes, promises, starts, refusals>>

(* What became final was the CONFIG of another epoch. *)
NextEpoch(n) ==
    LET b == ballot[n]
    IN  /\ IsConfig(b.final.frame) /\ EpochOf(b.final.frame) = b.epoch
        /\ ballot' = [ballot EXCEPT ![n] = BeginEpoch(b.epoch + 1, b.final.frame)]
        /\ UNCHANGED <<votes, promises, starts, refusals>>

(* n dies and comes back with what was durable. With all fields durable that is no step at all. *)
Restart(n) ==
    LET b == ballot[n]
        new == BeginEpoch(b.epoch, b.genesis)
    IN  /\ ballot' = [ballot EXCEPT ![n] =
                [f \in DOMAIN b |-> IF f \in Fields \ Durable THEN new[f] ELSE b[f]]]
        /\ UNCHANGED <<votes, promises, starts, refusals>>

(* n found the state root of x wrong: it never voted for it and never will (crash mode; Q8). *)
Refuse(n, x) ==
    LET b == ballot[n]
    IN  /\ MayRefuse /\ ~IsTwoPhase(b.genesis) /\ n \in Voters(b.genesis)
        /\ x # Genesis /\ EpochOf(x) = b.epoch /\ IsSealed(x) = TRUE
        /\ ~IsBelow(x, b.final.frame)
        /\ (\A r \in votes : r.node = n => ~IsBelow(x, r.frame)) = TRUE
        /\ refusals' = refusals \cup {[node |-> n, epoch |-> b.epoch, frame |-> x]}
        /\ UNCHANGED <<ballot, votes, promises, starts>>

(* Frames that n may seal next: one step at a time, since a longer batch is the same with fewer     *)
(* votes, and anybody may leave votes out.                                                          *)
Children(b) ==
    {y \in Frames : y # Genesis /\ Parent(y) = b.voted.frame
                    /\ EpochOf(y) = b.epoch /\ ViewOf(y) = b.view}

(* What the leader of view v may have proposed to n. *)
Proposals(b, v) ==
    LET l == LeaderOf(b.genesis, v)
    IN  IF l \in Byzantine
        THEN Anchors(b.genesis, b.epoch, v) \X {y \in Frames : IsBelow(b.genesis, y)}
        ELSE {s.anchor : s \in {t \in starts : t.epoch = b.epoch /\ t.view = v}}
             \X {r.frame : r \in {s \in votes : s.node = l /\ s.epoch = b.epoch /\ s.view = v
                                                /\ s.phase = FirstPhase(b.genesis)}}

Lead(n) ==
    LET b == ballot[n]
    IN  /\ LeaderOf(b.genesis, b.view) = n
        /\ \/ ~HasVoted(b) /\ \E a \in Anchors(b.genesis, b.epoch, b.view) :
                \E y \in {a.frame} \cup (IF IsTwoPhase(b.genesis) THEN Line(b.voted.frame) ELSE {}) :
                    Start(n, a, y)
           \/ HasVoted(b) /\ \E y \in Children(b) : Seal(n, y)

FollowAny(n) ==
    \E v \in Views : v >= ballot[n].view
        /\ \E p \in Proposals(ballot[n], v) : Follow(n, v, p[1], p[2])

FollowBelowAny(n) ==
    HasVoted(ballot[n]) /\ \E y \in Line(ballot[n].voted.frame) : FollowBelow(n, y)

PrepareAny(n) ==
    /\ HasVoted(ballot[n])
    /\ \E x \in Line(ballot[n].voted.frame) \cup Line(ballot[n].final.frame) : Prepare(n, x)

LearnAny(n) ==
    \E r \in {s \in votes : s.phase = COMMIT /\ s.epoch = ballot[n].epoch} :
        Learn(n, r.view, r.frame)

Next ==
    \E n \in Honest :
        \/ \E w \in Views : Enter(n, w)
        \/ NewView(n)
        \/ Lead(n)
        \/ FollowAny(n)
        \/ FollowBelowAny(n)
        \/ PrepareAny(n)
        \/ LearnAny(n)
        \/ NextEpoch(n)
        \/ Restart(n)
        \/ \E r \in votes : Refuse(n, r.frame)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Properties. *)

Mark == [view : Views \cup {-2, -1}, frame : Frames]
Ballot == [epoch : Nat, genesis : Frames, view : Views, voted : Mark, vstart : Nat \cup {-1},
           anchor : Mark, prepared : Mark, final : Mark]
TypeOK ==
    /\ \A n \in Honest : ballot[n] \in Ballot
    /\ \A r \in votes : r.node \in Honest /\ r.view \in Views /\ r.frame \in Frames
    /\ \A p \in promises : p.node \in Honest /\ p.view \in Views /\ p.high \in Mark

(* All FINAL certificates that can be made of the votes cast. A vote of epoch e for a frame above   *)
(* no CONFIG of epoch e - 1 cannot be cast (IsAcceptable), so Base is defined.                      *)
IsCertifiedVote(r) == IsCertified(Base(r.epoch, r.frame), r.epoch, r.view, r.phase, r.frame)
Finals ==
    {[epoch |-> r.epoch, view |-> r.view, frame |-> r.frame] :
        r \in {s \in votes : s.phase = COMMIT /\ IsCertifiedVote(s)}}

(* What is final is one chain. *)
IsOneChain(F) == \A c, d \in F : IsBelow(c.frame, d.frame) \/ IsBelow(d.frame, c.frame)
Agreement == IsOneChain(Finals)

(* Once something is final in a view, a frame that was first proposed in an earlier view and is not *)
(* below it is an orphan: it never becomes final (so that its transaction may be rolled back).      *)
IsFreeOfOrphans(F) ==
    \A c, d \in F : \A x \in Line(d.frame) :
        IsEarlier(EpochOf(x), ViewOf(x), c.epoch, c.view) => IsBelow(x, c.frame)
OrphansStayDead == IsFreeOfOrphans(Finals)

(* A view starts above everything that is final by an earlier view: why Agreement holds. *)
AreAnchorsAbove(F) ==
    \A n \in Honest : ballot[n].anchor # None =>
        \A c \in F : c.epoch = ballot[n].epoch /\ c.view < ballot[n].view =>
            IsBelow(c.frame, ballot[n].anchor.frame)
AnchorsAboveFinals == AreAnchorsAbove(Finals)

(* The certificates of one view, of either phase, are on one chain. *)
OneChainPerView ==
    LET C == {r \in votes : IsCertifiedVote(r)}
    IN  \A r, s \in C : r.epoch = s.epoch /\ r.view = s.view =>
            IsBelow(r.frame, s.frame) \/ IsBelow(s.frame, r.frame)

(* An honest leader starts its view once. *)
OneStartPerView ==
    \A s, t \in starts : s.epoch = t.epoch /\ s.view = t.view => s = t

(* Whoever is in one epoch has the same voters. *)
OneConfigPerEpoch ==
    \A n, m \in Honest : ballot[n].epoch = ballot[m].epoch => ballot[n].genesis = ballot[m].genesis

(* What a node knows to be final is final, and stays. *)
IsKnowledgeTrue(F) ==
    \A n \in Honest : ballot[n].final.view >= 0 =>
        [epoch |-> ballot[n].epoch, view |-> ballot[n].final.view, frame |-> ballot[n].final.frame]
            \in F
KnownFinalIsFinal == IsKnowledgeTrue(Finals)

(* All of these at once, which costs TLC much less. *)
Safety ==
    /\ TypeOK /\ OneChainPerView /\ OneStartPerView /\ OneConfigPerEpoch
    /\ LET F == Finals
       IN  IsOneChain(F) /\ IsFreeOfOrphans(F) /\ AreAnchorsAbove(F) /\ IsKnowledgeTrue(F)

FinalOnlyGrows ==
    [][\A n \in Honest : IsBelow(ballot[n].final.frame, ballot'[n].final.frame)]_vars

=============================================================================
