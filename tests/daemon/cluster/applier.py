"""A daemon that does nothing but apply and mend, for tests that kill it.

``python -m tests.daemon.cluster.applier FOLDER SEED``: brings FOLDER/app.db through the states
FOLDER/state-0.db, state-1.db and so on, round and round, in random ways. FOLDER/journal.json holds
what a journal would: the place, the cursor and the intent.
"""

import json
import os
import sys
from pathlib import Path
from random import Random

import numpy as np
import trio

from basenet.daemon.cluster.file import (
    Intent,
    Outcome,
    Prepared,
    ReplicaFile,
    decode_intent,
    encode_intent,
)
from basenet.sqlite.captured import Cursor
from basenet.units import FrameHash, Seq
from basenet.wire.payload import CommitPayload
from tests.daemon.cluster.files import State, StateSources, opened

STATES = 6


class Journal:
    """Place, cursor and intent, replaced as one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.json"
        self.place = 0
        self.cursor: Cursor | None = None
        self.intent: Intent | None = None
        if self._path.exists():
            data = json.loads(self._path.read_text())
            self.place = data["place"]
            self.cursor = Cursor.decode(bytes.fromhex(data["cursor"])) if data["cursor"] else None
            if data["intent"]:
                self.intent = decode_intent(bytes.fromhex(data["intent"]))

    def keep(self, place: int, cursor: Cursor | None, prepared: Prepared | None, end: int) -> None:
        intent = b""
        if prepared is not None:
            intent = encode_intent(prepared.before, prepared.after, place_of(end))
        data = {
            "place": place,
            "cursor": cursor.encode().hex() if cursor is not None else "",
            "intent": intent.hex(),
        }
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(data))
        os.replace(fresh, self._path)  # noqa: PTH105
        self.place, self.cursor = place, cursor


def place_of(number: int) -> tuple[Seq, FrameHash]:
    return Seq(number), FrameHash(bytes(32))


def states_of(folder: Path) -> list[State]:
    return [State((folder / f"state-{n}.db").read_bytes(), 4096) for n in range(STATES)]


def difference(before: State, after: State) -> CommitPayload:
    """The pages of ``after`` that ``before`` has not."""
    pgnos = [
        pgno
        for pgno in range(1, after.db_pages + 1)
        if pgno > before.db_pages or before.leaf(pgno) != after.leaf(pgno)
    ]
    size = after.page_size
    return CommitPayload(
        page_size=size,
        db_pages=after.db_pages,
        commits=1,
        pgnos=np.array(pgnos, np.uint32),
        pages=b"".join(after.image[(pgno - 1) * size : pgno * size] for pgno in pgnos),
    )


async def recover(file: ReplicaFile, journal: Journal) -> int:
    """Return at which state the file is, as intent and cursor tell it."""
    found = await file.inspect(journal.cursor, journal.intent)
    if found.outcome is Outcome.UNKNOWN:
        return -1
    assert not found.commits, "a batch of ours, or a mark, is taken for a stranger's"
    if found.is_applied and journal.intent is not None:
        return int(journal.intent.place[0])
    return journal.place


async def step(file: ReplicaFile, journal: Journal, states: list[State], random: Random) -> None:
    place, end = journal.place, (journal.place + 1) % STATES

    async def keep(prepared: Prepared) -> None:
        journal.keep(place, journal.cursor, prepared, end)

    if random.random() < 0.4:
        # The mark leads to the place at which the file is.
        end = place
        await file.mark(is_read_only=not file.is_read_only, on_ready=keep)
    elif random.random() < 0.5:
        prepared = await file.prepare([[difference(states[place], states[end])]])
        assert prepared is not None
        await keep(prepared)
        await file.inject(prepared)
    else:
        sources = StateSources(pages=states[end].pages())
        await file.mend(states[end].target(), sources, keep)
    journal.keep(end, await file.cursor(), None, end)
    if random.random() < 0.5:
        await file.relieve()


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def main(folder: Path, seed: int) -> None:
    random, states, journal = Random(seed), states_of(folder), Journal(folder)
    async with opened(folder / "app.db", folder / "guardian.socket") as here:
        say("open")
        place = await recover(here.file, journal)
        if place < 0:
            state = states[journal.place]
            await here.file.mend(state.target(), StateSources(pages=state.pages()))
            place = journal.place
        journal.keep(place, await here.file.cursor(), None, place)
        while True:
            await step(here.file, journal, states, random)
            say("step")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
