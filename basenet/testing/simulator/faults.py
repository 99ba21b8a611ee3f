"""The schedule: every bad thing that will happen in a run, as a list made before it begins.

A fault is a fact with a time; what it meets depends on the run. Because the list is made first, a
failing run can be tried again with some of its faults taken away, until none is needless
(`simulator.minimise`). Faults end: after the chaos the network is whole and every node is up.

Places are numbers of nodes (a Byzantine twin has its own); times are ns of true time.
"""

from dataclasses import dataclass
from random import Random
from typing import Final

from basenet.testing.simulator.chance import stream
from basenet.testing.simulator.clock import MILLISECOND, SECOND
from basenet.testing.simulator.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The node dies at its first effects after ``at``: ``cut`` (0..1) of them are still done.

    ``is_machine``: its clock starts anew with it. ``is_at_promise``: it waits for effects that
    persist a ballot and send what that allows, the most dangerous moment.
    """

    at: int
    node: int
    cut: float
    down: int
    is_machine: bool
    is_at_promise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wipe:
    """The node dies and comes back with an empty disk: same key, new journal id."""

    at: int
    node: int
    down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """The node dies and its disk comes back as it was ``age`` ago (Q9).

    ``is_remembered``: only if every other voter has heard of something newer than that.
    """

    at: int
    node: int
    down: int
    age: int
    is_remembered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The node does nothing for a while (SIGSTOP, a long collection), then all at once."""

    at: int
    node: int
    lasts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDisk:
    """Every `Persist` of the node takes ``latency``; what waits behind it dies with the node."""

    at: int
    node: int
    lasts: int
    latency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Only nodes of one side hear one another; ``sides``: the side of each node."""

    at: int
    lasts: int
    sides: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWayCut:
    """Nothing goes from ``node`` to ``to``."""

    at: int
    lasts: int
    node: int
    to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The network loses, doubles and delays for a while; shares of messages, 0..1.

    ``late``: the share that arrives up to seconds later, after a restart, too.
    """

    at: int
    lasts: int
    lost: float
    doubled: float
    late: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """The application commits ``commits`` times just before the node's next fence closes."""

    at: int
    node: int
    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongRoots:
    """The node's leaves are wrong: its frames carry wrong state roots for a while."""

    at: int
    node: int
    lasts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseVerdict:
    """The node finds the next right proposal wrong, although it is not."""

    at: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """The operator has the leader hand over to the node."""

    at: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The operator wants another CONFIG; ``choice`` (0..1) says which of those possible."""

    at: int
    choice: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """The node drops all final frames that its database holds, but for the last ``keep``."""

    at: int
    node: int
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """All connections to the node end, and a redial is refused, although it is alive (Q16)."""

    at: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A reader at the node asks how far it must wait."""

    at: int
    node: int


Fault = (
    Crash
    | Wipe
    | RollBack
    | Pause
    | SlowDisk
    | Partition
    | OneWayCut
    | Noise
    | Slip
    | WrongRoots
    | FalseVerdict
    | Transfer
    | Change
    | Prune
    | Reset
    | Read
)
Schedule = tuple[Fault, ...]


# What happens how often, among the faults of one sort.
_NETWORK: Final = {"sides": 25, "alone": 15, "cuts": 20, "noise": 25, "calm": 15}
_BLOWS: Final = {"double": 2, "seesaw": 2, "usurpation": 1, "single": 8}
_NODES: Final = {"crash": 60, "pause": 10, "disk": 10, "slip": 7, "roots": 4, "verdict": 2}
_LOSSES: Final = {"wipe": 10}
_ROLL_BACKS: Final = {"roll back": 12}
_OPERATIONS: Final = {"read": 4, "transfer": 4, "reset": 2}
_CHANGES: Final = {"change": 5}


def make_schedule(scenario: Scenario, seed: int, places: int) -> Schedule:
    """Return the faults of the run ``seed`` among ``places`` nodes, by time."""
    chance = stream(seed, "schedule")
    faults: list[Fault] = []
    end = scenario.chaos
    at = chance.randrange(SECOND)
    while at < end:
        faults += _network_faults(chance, at, end, places)
        at += chance.randrange(300 * MILLISECOND, 2 * SECOND)
    # Some runs crash all the time and some hardly ever.
    pace = chance.choice((700, 1_500, 4_000)) * MILLISECOND
    at = chance.randrange(pace)
    while at < end:
        match _pick(chance, _BLOWS):
            case "double":
                faults += _double_blow(chance, at, end, places)
            case "seesaw":
                faults += _seesaw(chance, at, end, places)
            case "usurpation":
                faults += _usurpation(chance, at, end, places)
            case _:
                faults.append(_node_fault(chance, at, end, places, scenario))
        at += chance.randrange(pace // 4, pace * 2)
    at = chance.randrange(2 * SECOND)
    while at < end:
        faults.append(_operation(chance, at, places, scenario))
        at += chance.randrange(200 * MILLISECOND, 2 * SECOND)
    if scenario.has_pruning:
        faults += _prunings(chance, end, places)
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _pick(chance: Random, *weights: dict[str, int]) -> str:
    """Return one of the names, each as often as its weight says."""
    merged = {name: weight for table in weights for name, weight in table.items()}
    return chance.choices(list(merged), list(merged.values()))[0]


def _network_faults(chance: Random, at: int, end: int, places: int) -> list[Fault]:
    lasts = min(chance.randrange(200 * MILLISECOND, 4 * SECOND), end - at)
    match _pick(chance, _NETWORK):
        case "sides":
            sides = tuple(chance.randrange(2) for _ in range(places))
            return [Partition(at=at, lasts=lasts, sides=sides)]
        case "alone":
            alone = chance.randrange(places)
            sides = tuple(int(place == alone) for place in range(places))
            return [Partition(at=at, lasts=lasts, sides=sides)]
        case "cuts":
            return [
                OneWayCut(
                    at=at, lasts=lasts, node=chance.randrange(places), to=chance.randrange(places)
                )
                for _ in range(chance.randrange(1, 4))
            ]
        case "noise":
            lost, doubled, late = (
                chance.choice(shares) for shares in ((0, 0.02, 0.1, 0.25), (0, 0.05), (0.01, 0.05))
            )
            return [Noise(at=at, lasts=lasts, lost=lost, doubled=doubled, late=late)]
        case _:
            return []


def _node_fault(chance: Random, at: int, end: int, places: int, scenario: Scenario) -> Fault:
    node = chance.randrange(places)
    down = chance.choice((30, 300, 1_500, 4_000)) * MILLISECOND
    down = min(chance.randrange(down // 10, down), end - at)
    lasts = min(chance.choice((50, 400, 1_500, 3_000)) * MILLISECOND, end - at)
    losses = _LOSSES if scenario.has_config_changes else {}
    roll_backs = _ROLL_BACKS if scenario.has_roll_backs else {}
    match _pick(chance, _NODES, losses, roll_backs):
        case "pause":
            return Pause(at=at, node=node, lasts=lasts)
        case "disk":
            latency = chance.choice((1, 10, 300)) * MILLISECOND
            return SlowDisk(at=at, node=node, lasts=lasts, latency=latency)
        case "slip":
            return Slip(at=at, node=node, commits=chance.randrange(1, 4))
        case "roots":
            return WrongRoots(at=at, node=node, lasts=min(lasts, 400 * MILLISECOND))
        case "verdict":
            return FalseVerdict(at=at, node=node)
        case death:
            return _death(chance, death, at, node, down)


def _prunings(chance: Random, end: int, places: int) -> list[Fault]:
    """Return prunings that leave little to whoever was away for a second."""
    faults: list[Fault] = []
    at = chance.randrange(500 * MILLISECOND)
    while at < end:
        keep = chance.choice((0, 0, 4, 30))
        faults.append(Prune(at=at, node=chance.randrange(places), keep=keep))
        at += chance.randrange(20 * MILLISECOND, 500 * MILLISECOND)
    return faults


def _death(chance: Random, kind: str, at: int, node: int, down: int) -> Fault:
    match kind:
        case "wipe":
            return Wipe(at=at, node=node, down=down)
        case "roll back":
            age = chance.choice((10, 300, 3_000)) * MILLISECOND
            return RollBack(at=at, node=node, down=down, age=age)
        case _:
            return Crash(
                at=at,
                node=node,
                cut=chance.random(),
                down=down,
                is_machine=bool(chance.randrange(2)),
                is_at_promise=bool(chance.randrange(2)),
            )


def _double_blow(chance: Random, at: int, end: int, places: int) -> list[Fault]:
    """Return a crash, and another node that is cut off when what was lost begins to matter."""
    node, alone = chance.randrange(places), chance.randrange(places)
    begin = at + chance.choice((0, 1, 8, 60)) * MILLISECOND
    lasts = max(0, min(chance.randrange(1, 5) * SECOND, end - begin))
    sides = tuple(int(place == alone) for place in range(places))
    return [_brief_crash(chance, at, node), Partition(at=begin, lasts=lasts, sides=sides)]


def _seesaw(chance: Random, at: int, end: int, places: int) -> list[Fault]:
    """Return two quorums, one after the other, and a crash of the only node that is in both."""
    order = chance.sample(range(places), places)
    quorum = places // 2 + 1
    first, second = set(order[:quorum]), set(order[-quorum:])
    before = chance.randrange(500, 4_000) * MILLISECOND
    turn = at + before + chance.choice((0, 1, 8, 60)) * MILLISECOND
    lasts = max(0, min(chance.randrange(2, 6) * SECOND, end - turn))
    if lasts == 0:
        return []
    return [
        Partition(
            at=at, lasts=turn - at, sides=tuple(int(place in first) for place in range(places))
        ),
        *(_brief_crash(chance, at + before, node) for node in sorted(first & second)),
        Partition(
            at=turn, lasts=lasts, sides=tuple(int(place in second) for place in range(places))
        ),
    ]


def _usurpation(chance: Random, at: int, end: int, places: int) -> list[Fault]:
    """Return what tempts two nodes to leave a third: silence, a restart, and a false hint.

    One node does not hear ``victim``; another one that does dies, is back at once, and believes
    that ``victim`` is dead. Only what it promised before it died stands against them.
    """
    victim, deaf, forgetful = (*chance.sample(range(places), min(places, 3)), 0, 0)[:3]
    crash = at + chance.randrange(1_600, 2_600) * MILLISECOND
    down = chance.randrange(2, 40) * MILLISECOND
    lasts = max(0, min(6 * SECOND, end - at))
    return [
        OneWayCut(at=at, lasts=lasts, node=victim, to=deaf),
        OneWayCut(at=at, lasts=lasts, node=deaf, to=victim),
        Crash(
            at=min(crash, end),
            node=forgetful,
            cut=chance.random(),
            down=down,
            is_machine=False,
            is_at_promise=False,
        ),
        *(
            Reset(at=min(crash + down + later * MILLISECOND, end), node=victim)
            for later in (10, 60, 200)
        ),
    ]


def _brief_crash(chance: Random, at: int, node: int) -> Crash:
    down = chance.randrange(5, 400) * MILLISECOND
    return Crash(
        at=at, node=node, cut=chance.random(), down=down, is_machine=False, is_at_promise=True
    )


def _operation(chance: Random, at: int, places: int, scenario: Scenario) -> Fault:
    changes = _CHANGES if scenario.has_config_changes else {}
    match _pick(chance, _OPERATIONS, changes):
        case "change":
            return Change(at=at, choice=chance.random())
        case "reset":
            return Reset(at=at, node=chance.randrange(places))
        case "read":
            return Read(at=at, node=chance.randrange(places))
        case _:
            return Transfer(at=at, node=chance.randrange(places))


def describe(fault: Fault) -> str:
    """Return the fault in one line, with times in ms."""
    fields = []
    for name in fault.__dataclass_fields__:
        value = getattr(fault, name)
        is_time = name in ("at", "lasts", "down", "age", "latency")
        fields.append(f"{name} {value / MILLISECOND:.1f} ms" if is_time else f"{name} {value}")
    return f"{type(fault).__name__}: {', '.join(fields)}"
