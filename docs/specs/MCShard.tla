------------------------------ MODULE MCShard ------------------------------
(***************************************************************************)
(* Shard.tla with frames that TLC can enumerate, and the models of it.     *)
(*                                                                         *)
(* A frame is the sequence of what was sealed from the genesis up to it,   *)
(* each a tuple <<epoch, view, salt>>: two sequences are equal exactly if  *)
(* their hashes would be. Salt 0 is a CONFIG, which names the next epoch's *)
(* voters as Members says. Epochs, views and heights are bounded.          *)
(***************************************************************************)
EXTENDS Shard, TLC

CONSTANTS
    n1, n2, n3, n4, \* the nodes, n4 being the Byzantine one or a newcomer
    s1, s2,         \* salts
    MaxView, MaxHeight, MaxEpoch,
    Salts,          \* of data frames that an honest leader may choose from
    ForgedSalts,    \* the same for a Byzantine leader, which seals more than one frame on a parent
    Members(_),     \* of an epoch: its voters in their order
    TwoPhase(_),    \* of an epoch: whether it is in the Byzantine mode
    LeaderIn(_, _), \* of an epoch and a view: who leads
    Fair            \* nodes that do not stop for ever (liveness)

MCViews == 0..MaxView
MCGenesis == <<>>

Sealings ==
    UNION {{<<e, v, s>> : s \in IF LeaderIn(e, v) \in Byzantine THEN ForgedSalts ELSE Salts} :
                e \in 1..MaxEpoch, v \in MCViews}
    \cup {<<e, v, 0>> : e \in 1..(MaxEpoch - 1), v \in MCViews}

(* Within an epoch views never sink along a chain, and a CONFIG ends its epoch: other sequences     *)
(* would never be voted for by anybody, so they are left out.                                       *)
IsOrdered(x) ==
    \A i \in 1..(Len(x) - 1) :
        \/ x[i][3] = 0 /\ x[i + 1][1] = x[i][1] + 1
        \/ x[i][3] # 0 /\ x[i + 1][1] = x[i][1] /\ x[i + 1][2] >= x[i][2]
MCFrames ==
    {<<>>} \cup {x \in UNION {[1..k -> Sealings] : k \in 1..MaxHeight} :
                    x[1][1] = 1 /\ IsOrdered(x)}

MCParent(x) == SubSeq(x, 1, Len(x) - 1)
MCHeight(x) == Len(x)
MCEpochOf(x) == IF x = <<>> THEN 0 ELSE x[Len(x)][1]
MCViewOf(x) == IF x = <<>> THEN 0 ELSE x[Len(x)][2]
LineTable == [x \in MCFrames |-> {SubSeq(x, 1, k) : k \in 0..Len(x)}]  \* evaluated once
MCLine(x) == LineTable[x]
MCIsConfig(x) == IF x = <<>> THEN TRUE ELSE x[Len(x)][3] = 0
MCVotersOf(g) == Members(MCEpochOf(g) + 1)
MCIsTwoPhase(g) == TwoPhase(MCEpochOf(g) + 1)
MCLeaderOf(g, v) == LeaderIn(MCEpochOf(g) + 1, v)

-----------------------------------------------------------------------------
(* Memberships and modes. *)

Three(e) == <<n1, n2, n3>>
Four(e) == <<n1, n2, n3, n4>>
ThreeThenOneNew(e) == IF e = 1 THEN <<n1, n2, n3>> ELSE <<n1, n3, n4>>
Never(e) == FALSE
Always(e) == TRUE

(* In turn, as the implementation does it. *)
InTurn(e, v) == Members(e)[(v % Len(Members(e))) + 1]
(* Views that nobody entered may be left out of a run: what stays is any sequence of leaders. Here  *)
(* the Byzantine one leads which it likes.                                                          *)
ByzantineEverySecond(e, v) == IF v % 2 = 0 THEN n4 ELSE Three(e)[(((v - 1) \div 2) % 3) + 1]
ByzantineFirst(e, v) == IF v = 0 THEN n4 ELSE Three(e)[((v - 1) % 3) + 1]
ByzantineAfterFirst(e, v) == IF v = 0 THEN n1 ELSE n4

(* Where n4 and n1 lead, n2 and n3 are alike; salts are anyway. *)
Alike == Permutations({n2, n3}) \cup Permutations({s1, s2})

(* A model that must fail need not see all states: two honest nodes and a liar are a quorum. *)
ThirdSleeps == ballot[n3] = BeginEpoch(1, Genesis)

-----------------------------------------------------------------------------
(* Fewer steps, the same votes. What a node knows to be final decides three things: what it tells   *)
(* in its next NewView; that an epoch has ended; and that in the Byzantine mode it may leave the    *)
(* branch that it voted for. Elsewhere it only forbids, and to forbid less is to check more. So     *)
(* nodes learn only just before they promise, and only what changes the promise; and at any time a  *)
(* CONFIG, and what is beside or above their vote in the Byzantine mode. That is a small part of    *)
(* the states, and no set of votes is lost.                                                         *)

Knowing(n) ==
    LET b == ballot[n]
    IN  {b} \cup {Learned(b, r.view, r.frame) :
            r \in {s \in votes : /\ s.phase = COMMIT /\ s.epoch = b.epoch
                                 /\ IsLower(High(b), At(s.view, s.frame))
                                 /\ IsNews(b, s.view, s.frame)}}

EnterKnowing(n, w) ==
    \E k \in Knowing(n) :
        LET b == Entered(k, w)
        IN  /\ w > k.view
            /\ ballot' = [ballot EXCEPT ![n] = b]
            /\ promises' = promises \cup {Promise(n, b)}
            /\ UNCHANGED <<votes, starts, refusals>>

PromiseKnowing(n) ==
    \E k \in Knowing(n) \ {ballot[n]} :
        /\ k.view > 0 /\ ~HasVoted(k) /\ High(k).view < k.view
        /\ ballot' = [ballot EXCEPT ![n] = k]
        /\ promises' = promises \cup {Promise(n, k)}
        /\ UNCHANGED <<votes, starts, refusals>>

LearnMatter(n) ==
    \E r \in {s \in votes : s.phase = COMMIT /\ s.epoch = ballot[n].epoch} :
        /\ \/ IsConfig(r.frame) /\ EpochOf(r.frame) = r.epoch
           \/ IsTwoPhase(ballot[n].genesis) /\ ~IsBelow(r.frame, ballot[n].voted.frame)
        /\ Learn(n, r.view, r.frame)

LeanNext ==
    \E n \in Honest :
        \/ \E w \in Views : EnterKnowing(n, w)
        \/ PromiseKnowing(n)
        \/ Lead(n)
        \/ FollowAny(n)
        \/ FollowBelowAny(n)
        \/ PrepareAny(n)
        \/ LearnMatter(n)
        \/ NextEpoch(n)
        \/ Restart(n)
        \/ \E r \in votes : Refuse(n, r.frame)

LeanSpec == Init /\ [][LeanNext]_vars

-----------------------------------------------------------------------------
(* Liveness, after everything has become calm: whoever does not stop for ever enters the last view, *)
(* its leader among them, and messages arrive. Whatever happened before, nothing may be wedged.     *)

FairNext(n) ==
    /\ WF_vars(Enter(n, MaxView))
    /\ WF_vars(NewView(n))
    /\ WF_vars(Lead(n))
    /\ WF_vars(FollowAny(n))
    /\ WF_vars(FollowBelowAny(n))
    /\ WF_vars(PrepareAny(n))
    /\ WF_vars(LearnAny(n))
    /\ WF_vars(NextEpoch(n))
FairSpec == Spec /\ \A n \in Fair : FairNext(n)

Progress == <>(\A n \in Fair : Height(ballot[n].final.frame) = MaxHeight)
=============================================================================
