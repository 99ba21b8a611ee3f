"""What the last proof of each shard found, kept over restarts: a proof is due once a day or so.

The file is a convenience: one that is missing or unreadable means that nothing was proven yet.
"""

from pathlib import Path
from typing import Final, TypedDict

import msgspec

from basenet.daemon.prover import Answer, Outcome
from basenet.errors import BasenetError
from basenet.keys.files import PRIVATE_FILE_MODE, read_file, remove_drafts, replace
from basenet.units import ShardId

LEDGER_NAME: Final = "proofs.json"


class Proven(msgspec.Struct, kw_only=True):
    """What is known of one shard. Moments are nanoseconds since 1970; 0: never.

    ``seq``, ``timestamp_ns``, ``seconds``, ``note``: of the last proof that succeeded, at
    ``verified_ns``. ``failure``: what is wrong, until it is proven to be mended; ``failed_seq``:
    the moment to prove that by. ``skipped``: why the last attempt proved nothing.
    """

    attempted_ns: int = 0
    verified_ns: int = 0
    seq: int = 0
    timestamp_ns: int = 0
    seconds: float = 0.0
    note: str | None = None
    failure: str | None = None
    failed_seq: int | None = None
    skipped: str | None = None


class ToldProof(TypedDict):
    """The fields of a `ShardStatus` that are about proofs."""

    proof: str
    proof_verified_ns: int | None
    proof_seq: int | None
    is_proof_failed: bool


class _Document(msgspec.Struct, kw_only=True):
    next_ns: int = 0
    shards: dict[str, Proven] = msgspec.field(default_factory=dict)


class Ledger:
    """What proofs found, by shard; empty until `load`."""

    def __init__(self) -> None:
        self.is_on = False
        self.failures: dict[str, int] = {}
        """How many proofs of a shard failed since this process began."""
        self._document = _Document()
        self._path: Path | None = None

    def load(self, data_dir: Path) -> None:
        """Take in what an earlier life wrote into ``data_dir``, where `save` writes."""
        self.is_on = True
        self._path = data_dir / LEDGER_NAME
        remove_drafts(self._path)
        try:
            content = read_file(self._path, what="the ledger of proofs")
            self._document = msgspec.json.decode(content, type=_Document)
        except (BasenetError, msgspec.DecodeError):
            self._document = _Document()

    def save(self) -> None:
        """Write it down; raises `UnavailableError`."""
        assert self._path is not None, "a ledger is loaded before it is saved"
        replace(self._path, msgspec.json.encode(self._document), mode=PRIVATE_FILE_MODE)

    @property
    def next_ns(self) -> int:
        """When the next proof is due."""
        return self._document.next_ns

    @next_ns.setter
    def next_ns(self, moment_ns: int) -> None:
        self._document.next_ns = moment_ns

    def of(self, shard: ShardId) -> Proven:
        """Return what is known of ``shard``; not to be changed."""
        return self._document.shards.get(shard) or Proven()

    def take(self, shard: ShardId, answer: Answer, now_ns: int) -> None:
        """Enter what a proof of ``shard`` answered."""
        entry = self._document.shards.setdefault(shard, Proven())
        entry.attempted_ns = now_ns
        entry.skipped = None
        if answer.outcome is Outcome.PROVEN:
            entry.verified_ns, entry.seq = now_ns, answer.seq or 0
            entry.timestamp_ns = answer.timestamp_ns or 0
            entry.seconds, entry.note = answer.seconds, answer.sentence
            entry.failure = entry.failed_seq = None
        elif answer.outcome is Outcome.FAILED:
            entry.failure, entry.failed_seq = answer.sentence, answer.seq
            self.failures[shard] = self.failures.get(shard, 0) + 1
        else:
            entry.skipped = answer.sentence

    def told(self, shard: ShardId) -> ToldProof:
        """Return what is known of the proofs of ``shard``, as fields of its `ShardStatus`."""
        entry = self.of(shard)
        return {
            "proof": self.describe(shard),
            "proof_verified_ns": entry.verified_ns or None,
            "proof_seq": entry.seq or None,
            "is_proof_failed": entry.failure is not None,
        }

    def describe(self, shard: ShardId) -> str:
        """Return how the archive of ``shard`` was proven last, in a sentence: ok, failed, ..."""
        entry = self.of(shard)
        if not self.is_on:
            return "off"
        if entry.failure is not None:
            return f"failed: {entry.failure}"
        if entry.skipped is not None:
            return f"skipped: {entry.skipped}"
        if not entry.verified_ns:
            return "none yet"
        return f"ok: seq {entry.seq} was restored" + (f"; {entry.note}" if entry.note else "")
