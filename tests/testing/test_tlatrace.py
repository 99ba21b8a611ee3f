"""A trace as a TLA+ module: numbers for names, one record an event."""

from basenet.testing.tlatrace import make_module

GENESIS = {
    "ev": "Genesis",
    "hash": "g",
    "height": 1,
    "voters": ["a", "b"],
    "is_byzantine": False,
    "liars": ["b"],
}


def frame(node: str, name: str, prev: str, height: int) -> dict[str, object]:
    return {
        "ev": "Frame",
        "node": node,
        "epoch": 1,
        "view": 0,
        "hash": name,
        "prev": prev,
        "height": height,
        "fepoch": 1,
        "fview": 0,
        "kind": "COMMIT",
    }


def test_nodes_frames_and_marks_become_numbers() -> None:
    """Voters are numbered in their order, the genesis is frame 0."""
    promise = {
        "ev": "NewView",
        "node": "a",
        "epoch": 1,
        "view": 1,
        "high": [0, 2, "x"],
        "proof": None,
    }
    module = make_module([GENESIS, frame("b", "x", "g", 2), promise])
    assert "Nodes == 2" in module
    assert "TraceLiars == {2}" in module
    assert "Electorates == (0 :> <<1, 2>>)" in module
    assert "FrameTable == <<\n<<0, 2, 1, 0, FALSE>>\n>>" in module
    assert '[ev |-> "Frame", node |-> 2, epoch |-> 1, view |-> 0, frame |-> 1],' in module
    assert "high |-> [view |-> 0, frame |-> 1], proof |-> [view |-> -2, frame |-> 0]]" in module


def test_frames_that_came_in_any_order_are_numbered_from_below() -> None:
    """A table of frames names parents by their number, so parents come first."""
    module = make_module([GENESIS, frame("a", "y", "x", 3), frame("a", "x", "g", 2)])
    assert "<<0, 2, 1, 0, FALSE>>,\n<<1, 3, 1, 0, FALSE>>" in module
    assert module.index("frame |-> 2]") < module.index("frame |-> 1]")


def test_a_frame_that_stands_on_nothing_is_nothing() -> None:
    """A liar may send what nobody can link; event numbers must not shift by that."""
    module = make_module([GENESIS, frame("a", "z", "unknown", 9)])
    assert '[ev |-> "Nothing", node |-> 1, epoch |-> 1, view |-> 0]' in module


def test_a_config_names_the_voters_that_its_epoch_told() -> None:
    """The electorate of an epoch is that of the frame which became final before it."""
    config = {**frame("a", "c", "g", 2), "kind": "CONFIG"}
    final = {
        "ev": "Final",
        "node": "a",
        "epoch": 1,
        "view": 0,
        "cview": 0,
        "height": 2,
        "hash": "c",
        "signers": ["a", "b"],
    }
    epoch = {"ev": "Epoch", "node": "a", "epoch": 2, "view": 0, "voters": ["b", "d"]}
    module = make_module([GENESIS, config, final, epoch])
    assert "Electorates == (0 :> <<1, 2>>) @@ (1 :> <<2, 3>>)" in module
