"""The lane of heartbeats as a node drives it: it says when its `wake_at` may have changed."""

from typing import Any

from basenet.engine.events import Instant
from basenet.engine.pulse import Pulse
from basenet.units import Lineage


class WatchedPulse(Pulse):
    """A lane of heartbeats that says when its `wake_at` may have changed."""

    is_changed = True

    def lead(self, *facts: Any) -> None:
        """Begin to lead."""
        self.is_changed = True
        super().lead(*facts)

    def unlead(self, lineage: Lineage, now: Instant) -> None:
        """Stop leading."""
        self.is_changed = True
        super().unlead(lineage, now)

    def follow(self, *facts: Any) -> None:
        """Grant a lineage to its leader."""
        self.is_changed = True
        super().follow(*facts)

    def refuse(self, lineage: Lineage, now: Instant) -> None:
        """Grant a lineage to nobody."""
        self.is_changed = True
        super().refuse(lineage, now)
