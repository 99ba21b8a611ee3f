"""What the driver must do after a step, in the order listed.

The one contract: the effects of one shard are performed in order, and a `Persist` is durable before
anything after it begins. The driver may gather the `Persist` of several steps and shards into one
transaction, as long as everything between and after them waits for it. When a `Persist` fails, the
replica is thrown away and made anew from the journal.
"""

from dataclasses import dataclass

from basenet.engine.ballot import Ballot
from basenet.units import Epoch, LocalNumber, PublicKeyBytes, Seq, View
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head
from basenet.wire.message import Message
from basenet.wire.payload import ConfigPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFrame:
    """A frame that this node sealed, and the local numbers of the commits in it."""

    frame: Frame
    local_first: LocalNumber
    local_last: LocalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Make all of this durable in one transaction.

    ``frames``: of other authors, by hash beside what is there. ``own``: captured here. ``ballot``:
    None when it has not changed.
    """

    own: tuple[OwnFrame, ...] = ()
    frames: tuple[Frame, ...] = ()
    ballot: Ballot | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send a message to these peers."""

    to: tuple[PublicKeyBytes, ...]
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFrames:
    """Send the frames of these heads (ascending, all held) from the journal to these peers."""

    to: tuple[PublicKeyBytes, ...]
    heads: tuple[Head, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFinal:
    """Send ``to`` the final history above ``above_height`` as `FinalReceived`, from the journal.

    Where the journal no longer has the frame after ``above_height``, offer a state instead: see
    `engine.adoption`, "Who asks for frames that are gone".
    """

    to: PublicKeyBytes
    above_height: Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compute the state roots of these frames (ascending, linked, all held); answer `Judged`.

    The first one follows a frame whose root is known to be right: judged before, or final.
    """

    epoch: Epoch
    view: View
    heads: tuple[Head, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalize:
    """These frames are final: archive them, show them, wake who waits for them; then apply them.

    ``certificate`` speaks of the last of them; None where one voter is enough. ``is_own``: the
    database of this node holds all of them already, because they were captured here; otherwise
    those above its place are applied, in order.
    """

    heads: tuple[Head, ...]
    certificate: Certificate | None
    is_own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """Commits of this node's application lost against ``certificate``: keep them, then undo them.

    ``heads``: what was framed of them (ascending; the first one follows the frame ``kept_height``).
    Everything captured and not yet framed follows them and shares their fate. The bundle is durable
    before the database is rolled back to the frame at ``kept_height``; both are done when the next
    effect begins. ``heads`` may be empty: then only what waits is lost, and often nothing does.
    It stands before the `Persist` of what decided it, so whoever knows a decision has acted on it.
    """

    heads: tuple[Head, ...]
    kept_height: Seq
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """This node may not write any more, from now: the application is locked out at once."""

    epoch: Epoch
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBegan:
    """A CONFIG became final: these vote from now on."""

    epoch: Epoch
    config: ConfigPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReady:
    """The read ``nonce`` is up to date once ``height`` is applied; None: ask again."""

    nonce: bytes
    height: Seq | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Evidence against a peer, or a fault to tell the operator; ``proof``: the signed messages."""

    what: str
    peer: PublicKeyBytes | None
    proof: tuple[Message, ...] = ()


Effect = (
    Persist
    | Send
    | SendFrames
    | ServeFinal
    | Judge
    | Finalize
    | Orphan
    | Fence
    | EpochBegan
    | ReadReady
    | Report
)
