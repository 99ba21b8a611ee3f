"""What a run is like: how many nodes, which faults, for how long. Everything else is the seed."""

from dataclasses import dataclass
from typing import Final

from basenet.testing.simulator.clock import SECOND
from basenet.wire.payload import FaultModel

MODES: Final = {"crash": FaultModel.CRASH, "byzantine": FaultModel.BYZANTINE}
SPARES: Final = 2
# The rates of two clocks differ by 1 % at most when each is within half of that of true time.
DRIFT_ALLOWED_PPM: Final = 4_950


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One configuration of the simulator.

    ``nodes``: voters of the genesis. ``byzantine``: how many of them lie. ``has_config_changes``:
    voters come and go, disks are lost, two nodes more than voters exist. ``drift_ppm``: how far a
    clock's rate may be off, 0: all run alike. ``has_roll_backs``: disks come back with older
    content. ``has_pruning``: nodes drop frames that are final and applied. ``chaos``, ``patience``:
    how long faults happen, and how long everything may take to become right again after them, in
    ns. ``is_signed_really``: Ed25519 instead of ideal signatures.
    """

    mode: FaultModel = FaultModel.CRASH
    nodes: int = 3
    byzantine: int = 0
    has_config_changes: bool = False
    has_roll_backs: bool = False
    has_pruning: bool = False
    drift_ppm: int = 0
    chaos: int = 14 * SECOND
    patience: int = 150 * SECOND
    is_signed_really: bool = False

    @property
    def spares(self) -> int:
        """How many nodes begin as learners."""
        return SPARES if self.has_config_changes else 0

    @property
    def tolerated(self) -> int:
        """How many voters may be lost for good without an end of progress."""
        if self.mode == FaultModel.CRASH:
            return (self.nodes - 1) // 2
        return (self.nodes - 1) // 3

    @property
    def name(self) -> str:
        """The scenario in a few words, as the command line would say it."""
        mode = next(name for name, value in MODES.items() if value == self.mode)
        parts = [f"{mode} n={self.nodes}"]
        if self.byzantine:
            parts.append(f"{self.byzantine} byzantine")
        if self.has_config_changes:
            parts.append("config changes")
        if self.has_roll_backs:
            parts.append("roll-backs")
        if self.has_pruning:
            parts.append("pruning")
        if self.drift_ppm:
            parts.append(f"drift {self.drift_ppm} ppm")
        if self.is_signed_really:
            parts.append("Ed25519")
        return ", ".join(parts)
