from pathlib import Path

import pytest
import trio

from basenet.config.values import Endpoint
from basenet.control.listeners import SOCKET_NAME
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.operator import is_loopback
from basenet.control.reset import Keep, ResetCommand
from basenet.errors import ConflictError
from tests.fakes import served as serving
from tests.fakes.client import Answer, ask, encode_request, read_answer
from tests.fakes.served import served
from tests.fakes.surface import FakeSurface, make_shard

HEADERS = {"x-base-command": "members"}
ADD = "/v1/shards/app/members/add?node=b,c"


async def post(port: int, path: str, host: str = "127.0.0.1", **headers: str) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        request = encode_request(path, method="POST", headers=HEADERS | given)
        await stream.send_all(request.replace(b"host: test", b"host: " + host.encode()))
        return await read_answer(stream)


async def post_unix(path: Path, target: str) -> Answer:
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(encode_request(target, method="POST", headers=HEADERS))
        return await read_answer(stream)


async def test_a_command_arrives_as_it_was_said(tmp_path: Path) -> None:
    """Over the socket and the loopback; the answer is the daemon's sentence."""
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        answer = await post(listeners.address.port, ADD)
        assert (answer.status, answer.json) == (
            200,
            {"shard": "app", "verb": "add", "done": "add was done to app"},
        )
        force = "/v1/shards/app/members/force?node=a&final-commits-may-be-lost=1"
        assert (await post_unix(tmp_path / SOCKET_NAME, force)).status == 200
        accept = f"/v1/shards/app/members/accept?lineage={'ab' * 16}"
        assert (await post_unix(tmp_path / SOCKET_NAME, accept)).status == 200
    assert surface.commands == [
        ("app", MembersCommand(verb=MembersVerb.ADD, nodes=("b", "c"))),
        ("app", MembersCommand(verb=MembersVerb.FORCE, nodes=("a",), is_loss_accepted=True)),
        ("app", MembersCommand(verb=MembersVerb.ACCEPT, lineage="ab" * 16)),
    ]


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("127.0.0.1", {"x_base_command": "something"}),
        ("127.0.0.1", {"origin": "http://evil.example"}),
        ("127.0.0.1:8090", {"origin": "null"}),
        ("evil.example:8090", {}),
        ("", {}),
    ],
)
async def test_a_web_page_cannot_command(
    tmp_path: Path, host: str, headers: dict[str, str]
) -> None:
    """It has an Origin, or lacks our header, or comes under a name of its own: 403."""
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        answer = await post(listeners.address.port, ADD, host, **headers)
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    assert surface.commands == []


async def test_a_listener_on_every_interface_takes_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even from the loopback, behind which a proxy may stand; the socket goes on to."""
    monkeypatch.setattr(serving, "ANY_PORT", Endpoint(host="0.0.0.0", port=0))  # noqa: S104
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        answer = await post(listeners.address.port, ADD)
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
        assert "data directory" in answer.json["error"]
        assert surface.commands == []
        assert (await ask(listeners.address.port, "/v1/shards/app")).status == 200
        assert (await post_unix(tmp_path / SOCKET_NAME, ADD)).status == 200


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("/v1/shards/app/members/grow?node=b", 404, "grow"),
        ("/v1/shards/nope/members/add?node=b", 404, "nope"),
        ("/v1/shards/app/members/add", 400, "at least one"),
        ("/v1/shards/app/members/add?nodes=b", 400, "'nodes'"),
        ("/v1/shards/app/members/add?node=b&node=c", 400, "'node'"),
        ("/v1/shards/app/members/add?node=b,,c", 400, "not a node id"),
        ("/v1/shards/app/members/force?node=a", 400, "may be lost"),
        ("/v1/shards/app/members/force?node=a&final-commits-may-be-lost=maybe", 400, "maybe"),
    ],
)
async def test_a_command_that_is_not_understood_is_refused(
    tmp_path: Path, path: str, status: int, named: str
) -> None:
    """One sentence, and nothing is done."""
    surface = FakeSurface(make_shard())
    async with served(surface, tmp_path) as listeners:
        answer = await post(listeners.address.port, path)
    assert answer.status == status
    assert named in answer.json["error"]
    assert surface.commands == []


async def test_the_daemons_refusal_is_answered(tmp_path: Path) -> None:
    """With the status of its kind; and a command is nothing that can be asked by GET."""
    surface = FakeSurface(make_shard())
    surface.command_error = ConflictError("node b has not caught up")
    async with served(surface, tmp_path) as listeners:
        answer = await post(listeners.address.port, ADD)
        assert (answer.status, answer.json["error"]) == (409, "node b has not caught up")
        assert (await ask(listeners.address.port, ADD, headers=HEADERS)).status == 405
    assert len(surface.commands) == 1


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("", False),
        ("0.0.0.0", False),  # noqa: S104
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_the_loopback_is_known(host: str, is_ours: bool) -> None:  # noqa: FBT001
    """Addresses and the one name that is no lookup."""
    assert is_loopback(host) is is_ours


async def test_a_reset_is_a_command_too(tmp_path: Path) -> None:
    """Taken from the same places, and with the same care for what is not understood."""
    surface = FakeSurface(make_shard())
    path = "/v1/shards/app/reset"
    async with served(surface, tmp_path) as listeners:
        port = listeners.address.port
        answer = await post(port, f"{path}?keep=chain")
        assert (answer.status, answer.json["done"]) == (200, "chain counts for app")
        assert (await post_unix(tmp_path / SOCKET_NAME, f"{path}?keep=file&force=1")).status == 200
        for query in ("", "?keep=both", "?keep=file&keep=chain", "?keep=file&node=a"):
            assert (await post(port, f"{path}{query}")).status == 400
        assert (await post(port, f"{path}?keep=file", origin="http://evil.example")).status == 403
        assert (await ask(port, f"{path}?keep=file")).status == 405
        assert (await post(port, "/v1/shards/gone/reset?keep=file")).status == 404
    assert surface.resets == [
        ("app", ResetCommand(keep=Keep.CHAIN)),
        ("app", ResetCommand(keep=Keep.FILE, is_forced=True)),
    ]
