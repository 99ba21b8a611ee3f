"""A recorded run as the TLA+ module TraceData, for docs/specs/TraceShard.tla.

The TLC at hand reads no JSON, so a trace is given to it as a module. Keys become node numbers from
1, hashes become frame numbers from 1 with 0 for the genesis, and every event one record.
"""

from collections.abc import Sequence
from typing import Any

from basenet.testing.tracecheck import Event

_NONE = "[view |-> -2, frame |-> 0]"


class Writer:
    """Numbers what a trace names."""

    def __init__(self, genesis: Event, events: Sequence[Event]) -> None:
        """Take the genesis event, and the others."""
        self._genesis = genesis
        self._events = events
        self._frames = {genesis["hash"]: 0}
        self._nodes: dict[str, int] = {}
        self._electorates = {0: genesis["voters"]}
        self._table: list[str] = []

    def write(self) -> str:
        """Return the module."""
        genesis, events = self._genesis, self._events
        for key in genesis["voters"]:
            self._node(key)
        self._number_frames()
        self._find_electorates()
        lines = [self._event(event) for event in events]
        liars = ", ".join(str(self._node(key)) for key in genesis["liars"])
        electorates = " @@ ".join(
            f"({frame} :> {self._voters(voters)})" for frame, voters in self._electorates.items()
        )
        views = [event["view"] for event in events]
        return "\n".join(
            [
                "----------------------------- MODULE TraceData -----------------------------",
                "EXTENDS Integers, Sequences, TLC",
                f"Nodes == {len(self._nodes)}",
                f"TraceLiars == {{{liars}}}",
                f"IsByzantineMode == {_boolean(is_true=genesis['is_byzantine'])}",
                f"GenesisHeight == {genesis['height']}",
                f"MaxView == {max(views, default=0)}",
                f"Electorates == {electorates}",
                "FrameTable == <<",
                ",\n".join(self._table),
                ">>",
                "Trace == <<",
                ",\n".join(lines),
                ">>",
                "=" * 77,
                "",
            ]
        )

    def _number_frames(self) -> None:
        """Give frames their numbers, parents first, in whatever order they were stored.

        One whose parent nobody stored has no place on any line, and gets no number.
        """
        known = {event["hash"]: event for event in self._events if event["ev"] == "Frame"}
        for name in list(known):
            branch, low = [], name
            while low not in self._frames and low in known:
                branch.append(known[low])
                low = known[low]["prev"]
            if low not in self._frames:
                continue
            for event in reversed(branch):
                self._add_frame(event)

    def _find_electorates(self) -> None:
        """Note which CONFIG each epoch began with."""
        final: dict[str, str] = {}
        for event in self._events:
            if event["ev"] == "Final":
                final[event["node"]] = event["hash"]
            elif event["ev"] == "Epoch" and event["node"] in final:
                number = self._frame(final[event["node"]])
                self._electorates.setdefault(number, event["voters"])

    def _add_frame(self, event: Event) -> None:
        number = self._frames[event["hash"]] = len(self._frames)
        assert number == len(self._table) + 1, "frames are numbered in their order"
        is_config = _boolean(is_true=event["kind"] == "CONFIG")
        parent = self._frames[event["prev"]]
        self._table.append(
            f"<<{parent}, {event['height']}, {event['fepoch']}, {event['fview']}, {is_config}>>"
        )

    def _node(self, key: str) -> int:
        return self._nodes.setdefault(key, len(self._nodes) + 1)

    def _voters(self, keys: Sequence[str]) -> str:
        return "<<" + ", ".join(str(self._node(key)) for key in keys) + ">>"

    def _mark(self, mark: Sequence[Any] | None) -> str:
        if mark is None:
            return _NONE
        view, _, name = mark
        return f"[view |-> {view}, frame |-> {self._frame(name)}]"

    def _frame(self, name: str) -> int:
        # A frame that no event told of: a number that no table has, so that TLC stops there.
        return self._frames.get(name, -1)

    def _event(self, event: Event) -> str:
        name = event["ev"]
        if name == "Frame" and event["hash"] not in self._frames:
            name = "Nothing"
        fields = {
            "ev": f'"{name}"',
            "node": self._node(event["node"]),
            "epoch": event["epoch"],
            "view": event["view"],
        }
        if "hash" in event and name != "Nothing":
            fields["frame"] = self._frame(event["hash"])
        fields |= {fact: event[fact] for fact in ("phase", "cview") if fact in event}
        for fact in ("high", "proof", "anchor", "voted", "prepared", "final"):
            if fact in event:
                fields[fact] = self._mark(event[fact])
        if "end" in event:
            fields["frame"] = self._frame(event["end"][1])
        if event["ev"] == "Propose":
            fields["prev"] = self._frame(event["prev"][1])
        if "new_views" in event:
            told = (
                f"[node |-> {self._node(key)}, high |-> {self._mark(high)}]"
                for key, high in event["new_views"]
            )
            fields["promises"] = "{" + ", ".join(told) + "}"
        if "signers" in event:
            fields["signers"] = (
                "{" + ", ".join(str(self._node(key)) for key in event["signers"]) + "}"
            )
        if "voters" in event:
            fields["voters"] = self._voters(event["voters"])
        return "[" + ", ".join(f"{fact} |-> {value}" for fact, value in fields.items()) + "]"


def _boolean(*, is_true: bool) -> str:
    return "TRUE" if is_true else "FALSE"


def make_module(events: Sequence[Event]) -> str:
    """Return the module TraceData for a trace, its genesis event first."""
    return Writer(events[0], events[1:]).write()
