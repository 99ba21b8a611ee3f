from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from basenet.control import question, routes
from basenet.control.slices import SHARDS_AT_ONCE
from basenet.control.surface import NodeStatus, Orphaned, ShardRole, ShardState, ShardStatus
from basenet.errors import NotFoundError, UnavailableError
from tests.fakes.client import Answer, ask, encode_request
from tests.fakes.served import served
from tests.fakes.surface import LINEAGE, FakeSurface, make_shard


def assert_is_error(answer: Answer, status: int, code: str) -> None:
    """Every error has the one body, and says its status twice the same."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    body = answer.json
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-correlation-id"]
    assert len(body["error"]) > 10


async def test_health_is_the_process_and_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 while the journal answers; 503 when it fails, and when it says nothing."""
    surface = FakeSurface()
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        assert (await ask(port, "/healthz")).json == {"healthy": True, "node_id": "node-a"}
        surface.health_error = UnavailableError("the journal's disk is gone: mount it")
        assert_is_error(await ask(port, "/healthz"), 503, "shard_unavailable")
        monkeypatch.setattr(routes, "HEALTH_SECONDS_MAX", 0.05)
        surface.health_hangs = True
        answer = await ask(port, "/healthz")
        assert_is_error(answer, 503, "shard_unavailable")
        assert "did not answer within" in answer.json["error"]


async def test_readiness_gives_its_reasons(tmp_path: Path) -> None:
    """200 when ready; else 503 with each reason, and a hint when to ask again."""
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        assert (await ask(port, "/readyz")).json == {"ready": True, "reasons": []}
        surface.ready, surface.reasons = False, ("shard app is starting", "shard b stopped")
        answer = await ask(port, "/readyz")
        assert_is_error(answer, 503, "shard_unavailable")
        assert answer.json["ready"] is False
        assert answer.json["reasons"] == ["shard app is starting", "shard b stopped"]
        assert answer.headers["retry-after"] == "1"


async def test_members_keep_the_names_of_the_followed_system(tmp_path: Path) -> None:
    """nodeID, members and shardKey, and beside them roles and each shard's progress."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        body = (await ask(listeners.address.port, "/-/base/members")).json
    assert body["nodeID"] == "node-a"
    assert body["members"] == ["node-a"]
    assert body["shardKey"] is None
    assert body["roles"] == {"node-a": "validator"}
    assert body["shards"]["app"] == {
        "state": "capturing",
        "lineage": LINEAGE,
        "epoch": 1,
        "view": 0,
        "captured_seq": 11,
        "final_seq": 11,
        "archived_seq": 9,
        "applied_seq": 0,
        "role": "writer",
        "writer": None,
    }


async def test_shards_are_listed_with_their_node(tmp_path: Path) -> None:
    """One document has the node's facts and every shard's."""
    async with served(FakeSurface(make_shard("a"), make_shard("b")), tmp_path) as listeners:
        body = (await ask(listeners.address.port, "/v1/shards")).json
    assert [shard["shard"] for shard in body["shards"]] == ["a", "b"]
    assert (body["node_id"], body["network"], body["ready"]) == ("node-a", "standalone", True)
    assert body["archive"] == "file:///archive"


class ManyShards(FakeSurface):
    """Counts what is told of shards, and lets one go after they were listed."""

    def __init__(self, count: int) -> None:
        super().__init__(*(make_shard(f"s{number:04}") for number in range(count)))
        self.told = 0
        self.gone = ""

    def shard_status(self, shard: str) -> ShardStatus:
        self.told += 1
        if shard == self.gone:
            raise NotFoundError(f"there is no shard {shard}")
        return super().shard_status(shard)


@pytest.mark.parametrize("path", ["/v1/shards", "/metrics", "/-/base/members"])
async def test_an_answer_about_many_shards_lets_others_run(tmp_path: Path, path: str) -> None:
    """Between two turns of another task no more is told than two slices."""
    surface, turns = ManyShards(1_000), list[int]()

    async def take_turns() -> None:
        while True:
            turns.append(surface.told)
            await trio.lowlevel.checkpoint()

    async with served(surface, tmp_path) as listeners, trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        assert (await ask(listeners.address.port, path)).status == 200
        nursery.cancel_scope.cancel()
    assert surface.told == 1_000
    steps = [after - before for before, after in pairwise([*turns, surface.told])]
    assert max(steps) <= 2 * SHARDS_AT_ONCE


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_probe_asks_for_no_shard(tmp_path: Path, path: str) -> None:
    """It comes every few seconds, to nodes with thousands of shards."""
    surface = ManyShards(100)
    async with served(surface, tmp_path) as listeners:
        assert (await ask(listeners.address.port, path)).status == 200
    assert surface.told == 0


async def test_answers_that_overlap_are_whole(tmp_path: Path) -> None:
    """Each of many questions at once gets what it would get alone."""
    surface, paths = ManyShards(300), ["/v1/shards", "/metrics", "/-/base/members"]
    answers: dict[str, set[bytes]] = {path: set() for path in paths}
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        alone = {path: (await ask(port, path)).body for path in paths}

        async def keep(path: str) -> None:
            answers[path].add((await ask(port, path)).body)

        async with trio.open_nursery() as nursery:
            for path in paths * 5:
                nursery.start_soon(keep, path)
    assert answers == {path: {body} for path, body in alone.items()}


async def test_a_shard_that_goes_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    """The others are told, in every answer."""
    surface = ManyShards(60)
    surface.gone = "s0030"
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        listed = [shard["shard"] for shard in (await ask(port, "/v1/shards")).json["shards"]]
        members = (await ask(port, "/-/base/members")).json["shards"]
        scrape = (await ask(port, "/metrics")).body.decode()
    left = [shard.shard for shard in surface.shards if shard.shard != "s0030"]
    assert listed == list(members) == left
    assert 'base_wal_bytes{shard="s0029"}' in scrape
    assert "s0030" not in scrape


async def test_the_document_of_all_shards_is_the_status_of_the_node(tmp_path: Path) -> None:
    """Its fields, in their order, with every shard's as it is told alone; sent in pieces."""
    surface = ManyShards(600)
    async with served(surface, tmp_path) as listeners:
        body = (await ask(listeners.address.port, "/v1/shards")).body
    whole = replace(surface.node_status(), shards=surface.shards)
    assert body == msgspec.json.encode(whole) + b"\n"
    assert msgspec.json.decode(body, type=NodeStatus).shards == surface.shards


async def test_a_shard_is_answered_with_its_headers(tmp_path: Path) -> None:
    """X-Base-Shard, -Seq (final), -Lag (captured and not final) and -Member."""
    async with served(FakeSurface(make_shard(captured_seq=14)), tmp_path) as listeners:
        answer = await ask(listeners.address.port, "/v1/shards/app")
    assert answer.json["archived_seq"] == 9
    headers = {name: value for name, value in answer.headers.items() if name.startswith("x-base")}
    assert headers == {
        "x-base-shard": "app",
        "x-base-seq": "11",
        "x-base-lag": "3",
        "x-base-member": "node-a",
    }


async def test_an_unknown_shard_is_not_found(tmp_path: Path) -> None:
    """404 with the shard's name, for the shard and for a wait, whatever is in the name."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        port = listeners.address.port
        for path in ("/v1/shards/nope", "/v1/shards/nope/wait?now=1", "/v1/shards/%00%ff"):
            answer = await ask(port, path)
            assert_is_error(answer, 404, "not_found")
        assert (await ask(port, "/v1/shards/nope")).json["shard"] == "nope"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/shards/", "/v1/shards/app/", "/metrics/x", "//"])
async def test_an_unknown_path_has_the_error_body(tmp_path: Path, path: str) -> None:
    """404, no redirect, no HTML."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        assert_is_error(await ask(listeners.address.port, path), 404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_another_method_has_the_error_body(tmp_path: Path, method: str) -> None:
    """405 with Allow; no cross-origin header is ever given."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        answer = await ask(
            listeners.address.port,
            "/v1/shards",
            method=method,
            headers={"origin": "http://evil.example", "access-control-request-method": "GET"},
        )
    assert_is_error(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_head_is_get_without_a_body(tmp_path: Path) -> None:
    """A probe may ask with HEAD."""
    async with served(FakeSurface(), tmp_path) as listeners:
        assert (await ask(listeners.address.port, "/readyz", method="HEAD")).status == 200
        assert (await ask(listeners.address.port, "/v1/shards", method="HEAD")).body == b""


async def test_a_wait_for_what_is_safe_returns_at_once(tmp_path: Path) -> None:
    """The answer names shard, seq, lineage and level; the headers the shard and its seq."""
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        answer = await ask(listeners.address.port, "/v1/shards/app/wait?seq=9")
    assert answer.json == {
        "shard": "app",
        "seq": 9,
        "lineage": LINEAGE,
        "level": "archived",
        "archived_seq": 9,
        "final_seq": 11,
        "generation": None,
        "cookie": "00112233-9",
    }
    assert answer.headers["x-base-shard"] == "app"
    assert answer.headers["x-base-seq"] == "11"
    assert surface.waits == [("app", 9, "archived", question.WAIT_SECONDS_DEFAULT)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("now=1", (None, "archived", 30.0)),
        ("now=1&level=final", (None, "final", 30.0)),
        ("seq=1&level=archived&timeout=250ms", (1, "archived", 0.25)),
        ("seq=0&timeout=5", (0, "archived", 5.0)),
        ("seq=7&now=0&timeout=1m30s", (7, "archived", 90.0)),
        ("cookie=00112233-5&level=applied", (5, "applied", 30.0)),
    ],
)
async def test_a_wait_is_asked_for_as_its_query_says(
    tmp_path: Path, query: str, expected: tuple[int | None, str, float]
) -> None:
    """seq, now, level and timeout arrive as values."""
    surface = FakeSurface(make_shard(archived_seq=11, applied_seq=11))
    async with served(surface, tmp_path) as listeners:
        answer = await ask(listeners.address.port, f"/v1/shards/app/wait?{query}")
    assert answer.status == 200
    assert surface.waits == [("app", *expected)]


@pytest.mark.parametrize(
    ("network", "archive", "level"),
    [
        ("standalone", "s3://bucket", "archived"),
        ("standalone", None, "final"),
        ("quasar", "s3://bucket", "final"),
    ],
)
async def test_the_level_follows_from_what_there_is(
    tmp_path: Path, network: str, archive: str | None, level: str
) -> None:
    """Final with peers or without an archive, else archived."""
    surface = FakeSurface(make_shard(archived_seq=11))
    surface.network, surface.archive = network, archive
    async with served(surface, tmp_path) as listeners:
        answer = await ask(listeners.address.port, "/v1/shards/app/wait?now=1")
    assert answer.json["level"] == level


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "seq=N"),
        ("now=0", "seq=N"),
        ("now=maybe", "maybe"),
        ("seq=1&now=1", "leave one"),
        ("seq=x", "'x'"),
        ("seq=-1", "'-1'"),
        ("seq=1.5", "'1.5'"),
        ("seq=99999999999999999999", "not a seq"),
        ("seq=%D9%A3", "not a seq"),
        ("seq=1&level=safe", "'safe'"),
        ("seq=1&level=", "level="),
        ("seq=1&timeout=soon", "not a duration"),
        ("seq=1&timeout=", "not a duration"),
        ("seq=1&timeout=2h", "too long"),
        ("seq=1&timeout=-1s", "not a duration"),
        ("seq=1&seq=2", "twice"),
        ("seq=1&levle=final", "'levle'"),
        ("cookie=00112233-1&seq=1", "leave one"),
        ("cookie=00112233-1&now=1", "leave one"),
        ("cookie=", "no cookie"),
        ("cookie=0011223-1", "no cookie"),
        ("cookie=00112233-99999999999999999999", "no cookie"),
        ("cookie=0011223G-1", "no cookie"),
    ],
)
async def test_a_query_that_is_not_understood_is_refused(
    tmp_path: Path, query: str, named: str
) -> None:
    """400 with the fault in the sentence, and nothing is waited for."""
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        answer = await ask(listeners.address.port, f"/v1/shards/app/wait?{query}")
    assert_is_error(answer, 400, "bad_request")
    assert named in answer.json["error"]
    assert surface.waits == []


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/shards", "/v1/shards/app"])
async def test_a_path_without_a_query_refuses_one(tmp_path: Path, path: str) -> None:
    """What is ignored today would be misread tomorrow."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        assert_is_error(await ask(listeners.address.port, f"{path}?a=1"), 400, "bad_request")


async def test_a_wait_ends_when_its_time_is_up(tmp_path: Path) -> None:
    """503 with not_caught_up, to be told from an unknown shard and from a stop."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        answer = await ask(listeners.address.port, "/v1/shards/app/wait?seq=99&timeout=20ms")
    assert_is_error(answer, 503, "not_caught_up")
    assert answer.headers["retry-after"] == "1"
    assert (answer.json["shard"], answer.json["target_seq"]) == ("app", 99)


async def test_a_wait_ends_when_the_commit_is_safe(tmp_path: Path) -> None:
    """The answer comes with the grant, not with the time-out."""
    surface = FakeSurface(make_shard())
    answers: list[Answer] = []
    with trio.fail_after(5):
        async with served(surface, tmp_path) as listeners, trio.open_nursery() as nursery:

            async def wait() -> None:
                path = "/v1/shards/app/wait?seq=99&timeout=60s"
                answers.append(await ask(listeners.address.port, path))

            nursery.start_soon(wait)
            await surface.wait_began.wait()
            assert answers == []
            surface.grant()
    assert answers[0].json["archived_seq"] == 99


async def test_a_client_that_leaves_ends_its_wait(tmp_path: Path) -> None:
    """Nobody is waited for, so nothing is left waiting in the daemon."""
    surface = FakeSurface(make_shard())
    with trio.fail_after(5):
        async with served(surface, tmp_path, grace_s=60) as listeners:
            stream = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            await stream.send_all(encode_request("/v1/shards/app/wait?seq=99"))
            await surface.wait_began.wait()
            await stream.aclose()
            await surface.wait_cancelled.wait()
    assert surface.cancelled_waits == 1


async def test_a_cookie_of_another_lineage_is_a_conflict(tmp_path: Path) -> None:
    """409: its seq names a commit of another history, so nothing is waited for."""
    surface = FakeSurface(make_shard(applied_seq=11), make_shard("new", lineage=None))
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        answer = await ask(port, "/v1/shards/app/wait?cookie=deadbeef-3&level=applied")
        assert_is_error(answer, 409, "lineage_mismatch")
        assert "another history" in answer.json["error"]
        assert surface.waits == []
        # No lineage is known at first: it is compared with the one that the wait turns out to have.
        answer = await ask(port, "/v1/shards/new/wait?cookie=deadbeef-0&level=final")
        assert_is_error(answer, 409, "lineage_mismatch")
        assert len(surface.waits) == 1


async def test_an_orphaned_commit_is_a_conflict(tmp_path: Path) -> None:
    """409, to be told from one that is only late."""
    surface = FakeSurface(make_shard())
    bundles = ["app/5-4"]
    surface.wait_error = Orphaned("commits 4 to 9 lost against another history", bundles=bundles)
    async with served(surface, tmp_path) as listeners:
        answer = await ask(listeners.address.port, "/v1/shards/app/wait?now=1")
    assert_is_error(answer, 409, "orphaned")
    assert answer.json["bundles"] == bundles


async def test_the_writer_is_where_the_client_is_sent(tmp_path: Path) -> None:
    """200 at the writer itself, 307 to the same path of another, 503 while nobody is known."""
    replica: dict[str, Any] = {"role": ShardRole.REPLICA, "state": ShardState.FOLLOWING}
    surface = FakeSurface(
        make_shard("a", writer="node-a"),
        make_shard("b", **replica, writer="node-b", writer_endpoint="10.0.0.2:8090"),
        make_shard("c", **replica, writer="node-c", writer_endpoint="http://c.example:80/"),
        make_shard("d", **replica),
        make_shard("e", **replica, writer="node-e"),
        make_shard("f", **replica, writer="node-a"),
    )
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        here = await ask(port, "/v1/shards/a/writer")
        assert (here.status, here.json["writer"], here.json["lineage"]) == (200, "node-a", LINEAGE)
        assert "location" not in here.headers
        there = await ask(port, "/v1/shards/b/writer")
        assert (there.status, there.json["writer"]) == (307, "node-b")
        assert there.headers["location"] == "http://10.0.0.2:8090/v1/shards/b/writer"
        named = await ask(port, "/v1/shards/c/writer")
        assert named.headers["location"] == "http://c.example:80/v1/shards/c/writer"
        assert_is_error(await ask(port, "/v1/shards/d/writer"), 503, "shard_unavailable")
        unknown = await ask(port, "/v1/shards/e/writer")
        assert_is_error(unknown, 503, "shard_unavailable")
        assert "node-e" in unknown.json["error"]
        assert "BASE_ADVERTISE_HTTP" in unknown.json["error"]
        no_lease = await ask(port, "/v1/shards/f/writer")
        assert_is_error(no_lease, 503, "shard_unavailable")
        assert "this node leads" in no_lease.json["error"]
        assert_is_error(await ask(port, "/v1/shards/x/writer"), 404, "not_found")
