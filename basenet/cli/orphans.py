"""``basenet orphans``: what lost against another history, and how to get at it again.

Everything here works without a daemon, on the files in the data directory. A bundle is believed
when it is signed by a key that this node trusts, and nothing is ever put back by basenet itself:
what commits of a lost history mean to the present one, only the application's people can say.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import apsw
import click

from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.restore import restore
from basenet.cli import output
from basenet.cli.reading import open_archive, run, trust_option
from basenet.config import load
from basenet.daemon.cluster.orphans import (
    FOLDER,
    Bundle,
    find_bundle,
    list_bundles,
    read_bundle,
)
from basenet.daemon.cluster.revive import (
    check_base,
    is_born_empty,
    last_whole_seq,
    read_state,
    revive,
)
from basenet.errors import BasenetError, ConflictError, UnavailableError, UsageError
from basenet.journal.orphans import load_orphans
from basenet.journal.records import OrphanRow
from basenet.keys.trust import find_trusted_keys, get_fingerprint
from basenet.sqlite.rawcopy import copy_database
from basenet.sqlite.rowdiff import RowDiff, TableDiff
from basenet.units import parse_shard_id
from basenet.wire.frame import Frame, Kind
from basenet.wire.payload import CommitPayload, decode_commit, decode_commit_summary

_NONE: Final = "-"
_FRAMES_SHOWN_MAX: Final = 20
_BASE_HELP: Final = (
    "The database where the histories part: a copy of that moment, or the archive that has it."
)
_PAGES_SCHEMA: Final = """
create table bundle (name text primary key, value text);
create table frame (
    seq integer primary key, timestamp_ns integer, kind text, hash blob, author blob
);
create table pages (seq integer, pgno integer, data blob, primary key (seq, pgno)) without rowid;
create table before (pgno integer primary key, data blob);
"""

_Command = TypeVar("_Command", bound=Callable[..., object])


@click.group()
def command() -> None:
    """List, show and export commits that lost against another history.

    A bundle is named as `basenet orphans list` shows it: SHARD/NAME, or NAME alone.
    """


def _options(function: _Command) -> _Command:
    """Give a command what all of them take: where the bundles are, and whose they may be."""
    by_directory = click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="The data directory with the bundles.  [default: BASE_DATA_DIR, or .basenet beside "
        "the first of BASE_SHARDS or here]",
    )
    return by_directory(trust_option(output.json_option(function)))


_base_option = click.option("--base", metavar="DB|URL", help=_BASE_HELP)
_identity_argument = click.argument("identity", metavar="ID")


@command.command("list")
@click.option("--shard", metavar="ID", help="Of this shard alone.")
@_options
def list_command(
    *, shard: str | None, data_dir: Path | None, trusted_keys: Path | None, as_json: bool
) -> int:
    """List the bundles, oldest first. Exit code 1: one of them is damaged.

    One that the journal knows and whose file is gone is named, too.
    """
    place = _Bundles(data_dir, trusted_keys)
    bundles: list[Bundle] = []
    broken: dict[str, str] = {}
    for path in list_bundles(place.folder, shard):
        try:
            bundles.append(place.read(path))
        except BasenetError as error:
            broken[f"{path.parent.name}/{path.stem}"] = str(error)
    known = {bundle.id for bundle in bundles} | set(broken)
    rows = [row for row in _read_index(place.data_dir, shard) if row.id not in known]
    copies = {row.id: row.path for row in rows if not row.commits and Path(row.path).exists()}
    missing = {
        row.id: f"the journal knows its {row.commits} commits, and {row.path} is gone"
        for row in rows
        if row.id not in copies
    }
    if as_json:
        listed = [_describe(bundle) for bundle in bundles]
        output.print_json(
            {"orphans": listed, "damaged": broken, "missing": missing, "copies": copies}
        )
        return int(bool(broken))
    if bundles:
        output.print_table(
            ("ID", "WHEN", "REASON", "FRAMES", "COMMITS", "PAGES", "SIZE"),
            [
                (
                    bundle.id,
                    output.format_time(bundle.facts.created_ns),
                    bundle.facts.reason.words,
                    f"{bundle.heads[0].seq}..{bundle.heads[-1].seq}",
                    str(bundle.commits),
                    str(bundle.pages),
                    output.format_size(bundle.size_bytes),
                )
                for bundle in bundles
            ],
        )
    elif not broken and not rows:
        output.say(f"there are no orphan bundles in {place.folder}")
    for copy in copies.values():
        output.say(f"a whole database that was put aside: {copy}")
    for identity, problem in (broken | missing).items():
        output.say(f"! {identity}: {problem}")
    return int(bool(broken))


@command.command("show", short_help="Show what is in a bundle.")
@_identity_argument
@_base_option
@_options
def show(
    *,
    identity: str,
    base: str | None,
    data_dir: Path | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Show what is in a bundle; with --base also which rows of which tables it changes."""
    place = _Bundles(data_dir, trusted_keys)
    bundle = place.find(identity)
    tables: list[TableDiff] | None = None
    untold: dict[str, str] = {}
    if base is not None:
        with place.compare(bundle, base) as diff:
            tables, untold = diff.tables(), diff.untold
    frames = [_describe_frame(frame, bundle) for frame in bundle.frames()]
    if as_json:
        document: dict[str, object] = {**_describe(bundle), "frames": frames}
        if tables is not None:
            document["tables"] = [_describe_table(table) for table in tables]
            document["untold"] = untold
        output.print_json(document)
        return
    output.print_facts(_facts(bundle))
    click.echo()
    shown = frames[:_FRAMES_SHOWN_MAX]
    output.print_table(
        ("SEQ", "WHEN", "COMMITS", "PAGES", "PROPOSED"),
        [
            (
                str(frame["seq"]),
                output.format_time(int(str(frame["timestamp_ns"]))),
                str(frame["commits"]),
                str(frame["pages"]),
                "yes" if frame["proposed"] else "no",
            )
            for frame in shown
        ],
    )
    if len(frames) > len(shown):
        click.echo(f"... and {len(frames) - len(shown)} more; --json shows all")
    click.echo()
    _print_tables(tables, untold)


def _print_tables(tables: list[TableDiff] | None, untold: dict[str, str]) -> None:
    if tables is None:
        click.echo("Which tables it changes is told with --base: pages alone do not say.")
        return
    output.print_table(
        ("TABLE", "INSERTED", "UPDATED", "DELETED"),
        [(diff.table, str(diff.inserted), str(diff.updated), str(diff.deleted)) for diff in tables],
    )
    for table, why in untold.items():
        click.echo(f"! table {table} differs and cannot be told by rows: {why}")


@command.command("export")
@_identity_argument
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@_base_option
@_options
def export(
    *,
    identity: str,
    out: Path,
    base: str | None,
    data_dir: Path | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Make a database of a bundle: OUT, which must not exist.

    With --base it is the application's database as it stood before it was rolled back, proven by
    its state root. Without, it is a database with one table of the changed pages.
    """
    place = _Bundles(data_dir, trusted_keys)
    bundle = place.find(identity)
    target = Place(out)
    target.check()
    with _scratch(target.path.parent) as folder:
        if base is None:
            made = folder / "pages.db"
            _export_pages(bundle, made)
        else:
            _, made = place.make_states(bundle, base, folder)
        _publish(made, target)
    seq = last_whole_seq(bundle)
    if as_json:
        output.print_json({"id": bundle.id, "path": str(target.path), "seq": seq, "base": base})
    elif base is None:
        click.echo(f"{target.path}: the {bundle.pages} pages of {bundle.id}, in table pages")
    else:
        click.echo(f"{target.path}: shard {bundle.facts.shard} as it stood at the lost seq {seq}")


@command.command("reapply", short_help="Print the SQL that would redo a bundle's changes.")
@_identity_argument
@click.option("--base", metavar="DB|URL", required=True, help=_BASE_HELP)
@click.option(
    "--sql",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the statements to this new file instead of standard output.",
)
@click.option("--skip", metavar="TABLE", multiple=True, help="Leave this table out.")
@_options
def reapply(
    *,
    identity: str,
    base: str,
    sql: Path | None,
    skip: tuple[str, ...],
    data_dir: Path | None,
    trusted_keys: Path | None,
    as_json: bool,
) -> None:
    """Print the SQL that would redo a bundle's changes on the present database.

    It is the difference of two states by rows, not what the application did: read it before you
    run it. Nothing is changed by this command. It refuses where a table cannot be told by rows.
    """
    place = _Bundles(data_dir, trusted_keys)
    bundle = place.find(identity)
    if sql is not None and sql.exists():
        raise ConflictError(f"{sql} exists and is not overwritten; name another file")
    with place.compare(bundle, base) as diff:
        untold = {table: why for table, why in diff.untold.items() if table not in skip}
        if untold:
            raise ConflictError(
                "; ".join(
                    f"table {table} cannot be told by rows: {why}" for table, why in untold.items()
                )
                + "; leave it out with --skip TABLE, and look at it in what `basenet orphans "
                "export` makes"
            )
        tables = [table for table in diff.tables() if table.table not in skip]
        lines = partial(_script, bundle, diff, skip)
        if as_json:
            document = {**_describe(bundle), "tables": [_describe_table(table) for table in tables]}
            output.print_json({**document, "statements": list(diff.statements(skip))})
        elif sql is None:
            for line in lines():
                click.echo(line)
        else:
            _write_new(sql, lines())
            _print_tables(tables, {})
            click.echo(f"{sql}: read it before you run it")


def _script(bundle: Bundle, diff: RowDiff, skip: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of the script, which says first what it is and what it is not."""
    facts = bundle.facts
    yield f"-- Orphan bundle {bundle.id} ({facts.reason.words}): {bundle.commits} commits, frames"
    yield f"-- {bundle.heads[0].seq} to {last_whole_seq(bundle)}, lost against another history."
    yield f"-- These are the rows by which they differ from the state at seq {facts.kept_seq}."
    yield "-- This is no record of what the application did: values in between are gone, and so is"
    yield "-- what it would have done had it seen the present rows."
    yield "-- An UPDATE or DELETE does nothing where its row has changed since. An INSERT fails"
    yield "-- where its key is taken by now: run it so that the first error ends it without COMMIT"
    yield "-- (sqlite3 -bail), and nothing is done by halves."
    if diff.triggers:
        yield "-- These triggers fire as well, and may do a second time what is here already:"
        yield f"-- {diff.triggers!r}"
    for table in skip:
        yield f"-- Left out, as told: {table!r}"
    yield "BEGIN IMMEDIATE;"
    yield "PRAGMA defer_foreign_keys = ON;"
    yield from diff.statements(skip)
    yield "COMMIT;"


# -- bundles and the states that they stand for --------------------------------------------------


class _Bundles:
    """The bundles of one data directory, and whose signatures are believed."""

    def __init__(self, data_dir: Path | None, trusted_keys: Path | None) -> None:
        self._config = load(os.environ)
        self.data_dir = data_dir or self._config.data_dir
        self.folder = self.data_dir / FOLDER
        keys = find_trusted_keys(
            option=trusted_keys, configured=self._config.trusted_keys, data_dir=self.data_dir
        )
        self._trusted = keys.publics if keys is not None else None

    def read(self, path: Path) -> Bundle:
        """Return the proven bundle at ``path``."""
        if self._trusted is None:
            raise UsageError(
                "no trusted key is known, so no bundle can be believed: there is no trusted.keys "
                f"in {self.data_dir}; name one with --trusted-keys FILE or BASE_TRUSTED_KEYS"
            )
        return read_bundle(path, self._trusted)

    def find(self, identity: str) -> Bundle:
        """Return the bundle that ``identity`` names."""
        return self.read(find_bundle(self.folder, identity))

    @contextmanager
    def compare(self, bundle: Bundle, base: str) -> Iterator[RowDiff]:
        """Yield the difference between the kept and the lost state."""
        with _scratch(None) as folder:
            kept, lost = self.make_states(bundle, base, folder)
            with RowDiff(kept, lost) as diff:
                yield diff

    def make_states(self, bundle: Bundle, base: str, folder: Path) -> tuple[Path, Path]:
        """Make two databases in ``folder``: the kept state, and the one that was lost."""
        kept, lost = folder / "kept.db", folder / "lost.db"
        if is_born_empty(bundle):
            kept.touch(mode=0o600)  # the histories part before there was a database
        elif "://" in base:
            run(partial(self._restore, bundle, base, kept))
        else:
            copy_database(Path(base), kept)
        tree = read_state(kept)
        check_base(bundle, tree, base)
        copy_database(kept, lost)
        revive(bundle, lost, tree)
        return kept, lost

    async def _restore(self, bundle: Bundle, url: str, out: Path) -> None:
        config, facts = self._config, bundle.facts
        store = open_archive(url, config)
        try:
            await restore(
                store,
                ShardNames(service=config.service, shard=facts.shard),
                Place(out),
                trusted=self._trusted or frozenset(),
                wish=Wish(to_seq=facts.kept_seq, lineage=facts.lineage),
                fetcher=Fetcher(store, retry_seconds=config.retry_deadline_seconds),
            )
        finally:
            await store.aclose()


def _read_index(data_dir: Path, shard: str | None) -> tuple[OrphanRow, ...]:
    """Return the bundles that the journal knows; none where it has no index or cannot be read.

    The journal is only read: as others have it open, or, without a log, as it lies there.
    """
    path = data_dir / "journal.db"
    is_alone = not path.with_name(f"{path.name}-wal").exists()
    uri = f"file:{quote(os.fspath(path.absolute()))}?mode=ro{'&immutable=1' if is_alone else ''}"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        with closing(apsw.Connection(uri, flags=flags)) as journal:
            return load_orphans(journal, None if shard is None else parse_shard_id(shard))
    except apsw.Error:
        return ()


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    """Yield a folder that only its owner can read, and that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".basenet-orphan-", dir=parent) as folder:
        yield Path(folder)


def _publish(made: Path, target: Place) -> None:
    """Give the finished database its name, durable, unless the name is taken by now."""
    target.check()
    try:
        with made.open("rb") as file:
            os.fsync(file.fileno())
        target.path.hardlink_to(made)
        folder = os.open(target.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise ConflictError(f"{target.path} appeared meanwhile; it is kept") from error
    except OSError as error:
        raise UnavailableError(f"{target.path} cannot be made: {error.strerror}") from error


def _write_new(path: Path, lines: Iterator[str]) -> None:
    """Write ``lines`` to the new file ``path``, which is not there when this fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            try:
                file.writelines(f"{line}\n" for line in lines)
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error


def _export_pages(bundle: Bundle, path: Path) -> None:
    """Write what the bundle holds into tables of a new database."""
    try:
        with closing(apsw.Connection(os.fspath(path))) as database, database:
            database.execute(_PAGES_SCHEMA)
            database.executemany("insert into bundle values (?, ?)", _facts(bundle).items())
            for frame in bundle.frames():
                head = frame.head
                facts = (head.seq, head.timestamp_ns, head.kind.name, head.hash, head.author)
                database.execute("insert into frame values (?, ?, ?, ?, ?)", facts)
                if head.kind == Kind.COMMIT:
                    _insert_pages(database, "pages", decode_commit(frame.payload), (head.seq,))
            for images in bundle.before_images():
                _insert_pages(database, "before", images, ())
    except apsw.Error as error:
        raise UnavailableError(f"{path} cannot be written: {error}") from error


def _insert_pages(
    database: apsw.Connection, table: str, images: CommitPayload, key: tuple[int, ...]
) -> None:
    places = ", ".join("?" * (len(key) + 2))
    database.executemany(
        f"insert into {table} values ({places})",  # noqa: S608  (names of ours)
        (
            (*key, pgno, bytes(images.page(index)))
            for index, pgno in enumerate(images.pgnos.tolist())
        ),
    )


# -- what people and programs are told -----------------------------------------------------------


def _describe(bundle: Bundle) -> dict[str, object]:
    facts, certificate = bundle.facts, bundle.certificate
    return {
        "id": bundle.id,
        "path": str(bundle.path),
        "shard": facts.shard,
        "lineage": facts.lineage.hex(),
        "reason": facts.reason.name.lower(),
        "detail": facts.detail,
        "created_ns": facts.created_ns,
        "kept_seq": facts.kept_seq,
        "kept_hash": facts.kept_hash.hex(),
        "kept_root": facts.kept_root.hex(),
        "first_seq": bundle.heads[0].seq,
        "last_seq": bundle.heads[-1].seq,
        "last_whole_seq": last_whole_seq(bundle),
        "unproposed_seq": facts.unproposed_seq or None,
        "first_local": facts.first_local,
        "last_local": facts.last_local,
        "commits": bundle.commits,
        "pages": bundle.pages,
        "before_pages": bundle.before_pages,
        "size_bytes": bundle.size_bytes,
        "signed_by": get_fingerprint(bundle.public),
        "certificate": None
        if certificate is None
        else {
            "epoch": certificate.epoch,
            "view": certificate.view,
            "height": certificate.height,
            "hash": certificate.hash.hex(),
            "voters": len(certificate.votes),
        },
    }


def _facts(bundle: Bundle) -> dict[str, str]:
    facts, certificate = bundle.facts, bundle.certificate
    killer = "none: no certificate stands against it"
    if certificate is not None:
        killer = (
            f"frame {certificate.height} {certificate.hash.hex()[:16]}... became final in epoch "
            f"{certificate.epoch}, view {certificate.view} by {len(certificate.votes)} votes"
        )
    return {
        "id": bundle.id,
        "reason": facts.reason.words + (f": {facts.detail}" if facts.detail else ""),
        "lost to": killer,
        "lineage": facts.lineage.hex(),
        "stands on": f"seq {facts.kept_seq}"
        + (f", {facts.db_pages} pages of {facts.page_size} bytes" if facts.db_pages else ""),
        "frames": f"{bundle.heads[0].seq} to {bundle.heads[-1].seq}",
        "commits": str(bundle.commits),
        "never proposed": f"from seq {facts.unproposed_seq}" if facts.unproposed_seq else _NONE,
        "captured": f"{output.format_time(bundle.heads[0].timestamp_ns)} to "
        f"{output.format_time(bundle.heads[-1].timestamp_ns)}",
        "kept since": output.format_time(facts.created_ns),
        "pages": f"{bundle.pages}, and {bundle.before_pages} as they were before",
        "signed by": get_fingerprint(bundle.public),
        "file": f"{bundle.path}, {output.format_size(bundle.size_bytes)}",
    }


def _describe_frame(frame: Frame, bundle: Bundle) -> dict[str, object]:
    head, unproposed = frame.head, bundle.facts.unproposed_seq
    is_commit = head.kind == Kind.COMMIT
    summary = decode_commit_summary(frame.payload) if is_commit else None
    return {
        "seq": head.seq,
        "kind": head.kind.name.lower(),
        "timestamp_ns": head.timestamp_ns,
        "commits": summary.commits if summary else 0,
        "pages": len(summary.pgnos) if summary else 0,
        "epoch": head.epoch,
        "view": head.view,
        "hash": head.hash.hex(),
        "proposed": not unproposed or head.seq < unproposed,
    }


def _describe_table(diff: TableDiff) -> dict[str, object]:
    return {
        "table": diff.table,
        "key": list(diff.key),
        "inserted": diff.inserted,
        "updated": diff.updated,
        "deleted": diff.deleted,
    }
