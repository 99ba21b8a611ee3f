import json
from pathlib import Path
from typing import Any

import pytest

from basenet.cli.main import run
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import FenceState, Member, ShardMember, ShardRole, ShardState
from basenet.errors import ConflictError
from tests.fakes.served import served_in_thread
from tests.fakes.surface import LINEAGE, FakeSurface, make_shard

MEMBERS = tuple(
    ShardMember(node_id=f"node-{name}", key=name * 64, final_seq=seq, is_connected=name != "c")
    for name, seq in (("a", 11), ("b", 9), ("c", None))
)


@pytest.fixture
def surface() -> FakeSurface:
    surface = FakeSurface(
        make_shard("app", writer="node-a", members=MEMBERS, applied_seq=11),
        make_shard(
            "orders",
            state=ShardState.FOLLOWING,
            role=ShardRole.REPLICA,
            writer="node-b",
            fence=FenceState.CLOSED,
            applied_seq=8,
            members=MEMBERS,
        ),
    )
    surface.network = "quasar"
    surface.members = (
        Member(node_id="node-a", role="validator", endpoint="10.0.0.1:8090", address="a:9999"),
        Member(node_id="node-b", role="validator", address="b:9999"),
        Member(node_id="node-c", role="archive", is_connected=False),
    )
    return surface


def ask(surface: FakeSurface, data_dir: Path, *words: str) -> int:
    with served_in_thread(surface, data_dir):
        return run(["members", *words, "--data-dir", str(data_dir)])


@pytest.mark.parametrize("words", [[], ["list"]])
def test_members_are_listed(
    surface: FakeSurface, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each node once, with where it is and what it writes; then each shard as it is here."""
    assert ask(surface, tmp_path, *words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["node-a", "validator", "(asked)", "a:9999", "10.0.0.1:8090", "1", "2"]
    assert lines[2] == ["node-b", "validator", "yes", "b:9999", "-", "1", "2"]
    assert lines[3] == ["node-c", "archive", "no", "-", "-", "0", "2"]
    voters = "node-a,node-b,node-c"
    assert lines[6] == ["app", "writer", "node-a", "1", "0", "11", "11", "11", voters]
    assert lines[7] == ["orders", "replica", "node-b", "1", "0", "-", "11", "8", voters]


def test_one_shard_is_shown_in_full(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its writer and fence, and how far each member has come."""
    assert ask(surface, tmp_path, "list", "--shard", "orders") == 0
    said = capsys.readouterr().out
    assert "node-a, replica, fence closed" in said
    rows = [line.split()[:6] for line in said.splitlines()[-3:]]
    assert rows == [
        ["node-a", "validator", "yes", "yes", "11", "0"],
        ["node-b", "validator", "yes", "yes", "9", "2"],
        ["node-c", "validator", "yes", "no", "-", "-"],
    ]


def test_the_list_is_a_document(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for programs, of all shards or of one."""
    assert ask(surface, tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [member["node_id"] for member in document["members"]] == ["node-a", "node-b", "node-c"]
    assert [shard["writer"] for shard in document["shards"]] == ["node-a", "node-b"]
    assert ask(surface, tmp_path, "list", "--shard", "orders", "--json") == 0
    (shard,) = json.loads(capsys.readouterr().out)["shards"]
    assert (shard["fence"], shard["lineage"], len(shard["members"])) == ("closed", LINEAGE, 3)


def test_a_node_alone_lists_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standalone is a cluster of one."""
    assert ask(FakeSurface(make_shard(writer="node-a")), tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["node-a", "validator", "(asked)"]
    assert lines[-1].split()[-1] == "node-a"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["init", "--from", "node-b"], {"verb": MembersVerb.INIT, "nodes": ("node-b",)}),
        (["add", "node-b", "node-c"], {"verb": MembersVerb.ADD, "nodes": ("node-b", "node-c")}),
        (["remove", "node-b"], {"verb": MembersVerb.REMOVE, "nodes": ("node-b",)}),
        (["transfer", "--to", "node-b"], {"verb": MembersVerb.TRANSFER, "nodes": ("node-b",)}),
        (
            ["force", "--from", "node-a", "--yes-final-commits-may-be-lost"],
            {"verb": MembersVerb.FORCE, "nodes": ("node-a",), "is_loss_accepted": True},
        ),
        (["accept", LINEAGE.upper()], {"verb": MembersVerb.ACCEPT, "lineage": LINEAGE}),
    ],
)
def test_a_command_reaches_the_daemon(
    surface: FakeSurface,
    tmp_path: Path,
    words: list[str],
    parts: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whole, and its sentence comes back."""
    assert ask(surface, tmp_path, *words, "--shard", "app") == 0
    assert capsys.readouterr().out == f"{parts['verb']} was done to app\n"
    assert surface.commands == [("app", MembersCommand(**parts))]


def test_a_command_answers_with_a_document(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For scripts."""
    assert ask(surface, tmp_path, "add", "node-b", "--shard", "app", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "shard": "app",
        "verb": "add",
        "done": "add was done to app",
    }


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["add", "--shard", "app"], 2, "NODE"),
        (["add", "node-b"], 2, "--shard"),
        (["add", "NODE_B", "--shard", "app"], 2, "not a node id"),
        (["force", "--from", "node-a", "--shard", "app"], 2, "yes-final-commits-may-be-lost"),
        (["accept", "feed", "--shard", "app"], 2, "32 hex digits"),
        (["add", "node-b", "--shard", "nope"], 3, "nope"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(  # noqa: PLR0917  (fixtures and examples)
    surface: FakeSurface,
    tmp_path: Path,
    words: list[str],
    code: int,
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And no command is given."""
    assert ask(surface, tmp_path, *words) == code
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert surface.commands == []


def test_options_before_the_subcommand_are_not_lost_in_silence(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the daemon is may stand there; the shard belongs behind it, and that is said."""
    with served_in_thread(surface, tmp_path):
        assert run(["members", "--data-dir", str(tmp_path), "remove", "b", "--shard", "app"]) == 0
        capsys.readouterr()
        assert run(["members", "--shard", "app", "remove", "b"]) == 2
    assert "behind the subcommand" in capsys.readouterr().err


def test_a_refusal_keeps_its_exit_code(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 for a conflict, with the daemon's sentence."""
    surface.command_error = ConflictError("a quorum of the last CONFIG answers")
    words = ["force", "--from", "node-a", "--yes-final-commits-may-be-lost", "--shard", "app"]
    assert ask(surface, tmp_path, *words) == 4
    assert capsys.readouterr().err == "basenet: a quorum of the last CONFIG answers\n"
