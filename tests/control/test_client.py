import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from basenet.config.values import Endpoint
from basenet.control.client import DaemonClient, Target, find_target
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import Level, ShardState
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from tests.fakes import served
from tests.fakes.served import served_in_thread
from tests.fakes.surface import FakeSurface, make_shard


@pytest.fixture
def surface() -> FakeSurface:
    return FakeSurface(make_shard("app"), make_shard("orders", state=ShardState.WAITING))


@pytest.fixture
def client(surface: FakeSurface, tmp_path: Path) -> Iterator[DaemonClient]:
    with served_in_thread(surface, tmp_path):
        yield DaemonClient(find_target({}, data_dir=tmp_path))


def test_facts_arrive_as_they_were_sent(surface: FakeSurface, client: DaemonClient) -> None:
    """A status that went through JSON equals the daemon's own."""
    assert client.get_shard_status("orders") == surface.shards[1]
    node = client.get_node_status()
    assert list(node.shards) == surface.shards
    assert (node.node_id, node.ready, node.uptime_s) == ("node-a", True, 60.0)


def test_a_daemon_is_reached_over_http_as_well(surface: FakeSurface, tmp_path: Path) -> None:
    """--url and the data directory lead to the same answers."""
    with served_in_thread(surface, tmp_path) as listeners:
        target = find_target({}, url=f"http://{listeners.address}/")
        assert DaemonClient(target).get_shard_status("app") == surface.shards[0]


def test_a_wait_is_carried_whole(surface: FakeSurface, client: DaemonClient) -> None:
    """Seq, level and time-out reach the daemon; no level means the daemon's own."""
    assert client.wait("app", 3, Level.FINAL, 1.5).seq == 3
    assert client.wait("orders", 9, None, 30).level is Level.ARCHIVED
    assert surface.waits == [("app", 3, "final", 1.5), ("orders", 9, "archived", 30.0)]


def test_a_refusal_is_raised_as_the_daemon_raised_it(client: DaemonClient) -> None:
    """The class gives the exit code, and the sentence is the daemon's."""
    with pytest.raises(NotFoundError, match="there is no shard 'nope' here"):
        client.get_shard_status("nope")
    with pytest.raises(UnavailableError, match="was not archived up to 99 within"):
        client.wait("app", 99, None, 0.02)
    with pytest.raises(UsageError, match="too long"):
        client.wait("app", 99, None, 7200)


@pytest.mark.parametrize("name", ["a/../b", "", "%2e", "ä", "a?b=c"])
def test_a_shard_name_cannot_become_another_path(client: DaemonClient, name: str) -> None:
    """Whatever is typed, it is looked up as one shard, or nothing is found."""
    with pytest.raises(NotFoundError):
        client.get_shard_status(name)


def test_no_daemon_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    """No socket, a dead socket and a closed port are the same to the operator."""
    for target in (
        find_target({}, data_dir=tmp_path),
        find_target({}, data_dir=tmp_path / "missing"),
        Target(endpoint=Endpoint(host="127.0.0.1", port=1)),
    ):
        with pytest.raises(UnavailableError) as caught:
            DaemonClient(target).get_node_status()
        assert str(caught.value).startswith(f"no basenet daemon answers at {target};")
        assert "start one with `basenet serve`" in str(caught.value)


def test_the_daemon_is_found_where_serve_would_put_it(tmp_path: Path) -> None:
    """--url, --data-dir, BASE_DATA_DIR, beside the first database, the present directory."""
    both = {"BASE_DATA_DIR": "/var/lib/basenet", "BASE_SHARDS": "/data/app.db"}
    assert find_target(both, url="http://10.0.0.1:8090") == Target(
        endpoint=Endpoint(host="10.0.0.1", port=8090)
    )
    assert find_target(both, data_dir=tmp_path).socket_path == tmp_path / "basenet.sock"
    assert find_target(both).socket_path == Path("/var/lib/basenet/basenet.sock")
    del both["BASE_DATA_DIR"]
    assert find_target(both).socket_path == Path("/data/.basenet/basenet.sock")
    assert find_target({}).socket_path == Path(".basenet/basenet.sock")


def test_a_faulty_setting_elsewhere_is_no_reason_not_to_ask() -> None:
    """Only what decides the place is read."""
    environment = {"BASE_DATA_DIR": "/d", "BASE_RETENTION": "soon", "BASE_WHAT": "1"}
    assert find_target(environment).socket_path == Path("/d/basenet.sock")


@pytest.mark.parametrize(
    "url",
    [
        "https://h:1",
        "h:1",
        "http://",
        "http://h:x",
        "http://u:p@h:1",
        "http://h:1/x",
        "http://[::1",
    ],
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    """One sentence with a good example."""
    with pytest.raises(UsageError, match=r"127\.0\.0\.1"):
        find_target({}, url=url)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://h", Endpoint(host="h", port=80)),
        ("http://[::1]", Endpoint(host="::1", port=80)),
        ("http://[::1]:8090", Endpoint(host="::1", port=8090)),
    ],
)
def test_a_url_may_leave_out_its_port(url: str, endpoint: Endpoint) -> None:
    """As everywhere on the web, it is 80 then."""
    assert find_target({}, url=url).endpoint == endpoint


def test_two_places_at_once_are_refused(tmp_path: Path) -> None:
    """Nobody could say which was asked."""
    with pytest.raises(UsageError, match="exclude each other"):
        find_target({}, data_dir=tmp_path, url="http://h:1")


@pytest.fixture
def stranger() -> Iterator[tuple[Target, list[tuple[int, bytes]]]]:
    """Yield a web server of somebody else, which answers what the test sets."""
    answers: list[tuple[int, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[0]
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its own name)
            """Stay silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Target(endpoint=Endpoint(host="127.0.0.1", port=server.server_port)), answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>", UnavailableError),
        (200, b'{"shard": 1}', UnavailableError),
        (404, b"<html>", UnavailableError),
        (503, b"[]", UnavailableError),
        (409, b'{"error": "taken", "code": "conflict"}', ConflictError),
        (500, b'{"error": "bad bytes", "code": "corrupt"}', CorruptionError),
        (500, b'{"error": "oops", "code": "internal"}', BasenetError),
        (418, b'{"error": "oops", "code": "internal"}', BasenetError),
    ],
)
def test_any_answer_becomes_a_typed_error(
    stranger: tuple[Target, list[tuple[int, bytes]]],
    status: int,
    body: bytes,
    kind: type[BasenetError],
) -> None:
    """What another program answers at that address is said in a sentence, never a traceback."""
    target, answers = stranger
    answers.append((status, body))
    with pytest.raises(BasenetError) as caught:
        DaemonClient(target).get_shard_status("app")
    assert type(caught.value) is kind


def test_a_command_is_given_and_refused_as_the_daemon_says(
    surface: FakeSurface, client: DaemonClient
) -> None:
    """Every part of it arrives, and a refusal comes back as the exception it was."""
    command = MembersCommand(verb=MembersVerb.ADD, nodes=("b", "c.example"))
    assert client.command("app", command) == "add was done to app"
    force = MembersCommand(verb=MembersVerb.FORCE, nodes=("a",), is_loss_accepted=True)
    client.command("orders", force)
    accept = MembersCommand(verb=MembersVerb.ACCEPT, lineage="ab" * 16)
    client.command("orders", accept)
    assert surface.commands == [("app", command), ("orders", force), ("orders", accept)]
    surface.command_error = ConflictError("not caught up")
    with pytest.raises(ConflictError, match="not caught up"):
        client.command("app", command)
    with pytest.raises(NotFoundError):
        client.command("../x", command)


def test_a_command_to_a_listener_for_the_world_is_refused(
    surface: FakeSurface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error of use, with what to do instead."""
    monkeypatch.setattr(served, "ANY_PORT", Endpoint(host="0.0.0.0", port=0))  # noqa: S104
    command = MembersCommand(verb=MembersVerb.ADD, nodes=("b",))
    with served_in_thread(surface, tmp_path) as listeners:
        target = find_target({}, url=f"http://127.0.0.1:{listeners.address.port}")
        with pytest.raises(UsageError, match="socket in the data directory"):
            DaemonClient(target).command("app", command)
    assert surface.commands == []
