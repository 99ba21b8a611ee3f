"""`basenet keys`."""

import base64
import json
from pathlib import Path

import pytest

from basenet.cli.main import run
from basenet.keys import age, signing, trust

SEED_TEXT = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine that runs the tests, and a directory of their own."""
    for name in ("BASE_DATA_DIR", "BASE_SIGNING_KEY", "BASE_SHARDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def private_texts(directory: Path) -> list[str]:
    """Return everything that must not be printed."""
    keys = [signing.load(path).private for path in directory.rglob("*.key")]
    return [base64.b64encode(key).decode() for key in keys] + [key.hex() for key in keys]


def test_init_makes_an_authority_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--node once per node, or names after it; no private byte is printed."""
    assert run(["keys", "init", "--dir", "pki", "--node", "a", "b", "--node", "c"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("a", "b", "c"):
        public = signing.load(tmp_path / "pki" / name / "node.key").public_text
        assert public in out
    assert "pki/trusted.keys" in out
    assert not [text for text in private_texts(tmp_path) if text in out]


def test_init_as_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "init", "--dir", "pki", "--node", "a", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    key = signing.load(tmp_path / "pki" / "a" / "node.key")
    assert document["nodes"] == [
        {
            "node": "a",
            "certificate": "pki/a/node.crt",
            "key": "pki/a/node.key",
            "public_key": key.public_text,
            "fingerprint": key.fingerprint,
        }
    ]
    assert document["ca_certificate"] == "pki/ca.crt"


def test_init_refuses_to_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    """A conflict, exit code 4, and one sentence."""
    assert run(["keys", "init", "--dir", "pki", "--node", "a"]) == 0
    capsys.readouterr()
    assert run(["keys", "init", "--dir", "pki", "--node", "a"]) == 4
    assert "never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--dir", "pki"], ["--node", "a"], ["--dir", "pki", "--node", "../a"]]
)
def test_init_without_what_it_needs_is_usage(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", "init", *arguments]) == 2
    assert capsys.readouterr().err.startswith("basenet: ")
    assert list(tmp_path.iterdir()) == []


def test_show_prints_lines_that_are_a_trusted_keys_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an authority's directory: every node, and `basenet keys show > trusted.keys` works."""
    run(["keys", "init", "--dir", "pki", "--node", "a", "b"])
    capsys.readouterr()
    assert run(["keys", "show", "--dir", "pki"]) == 0
    out = capsys.readouterr().out
    assert trust.parse_trusted_keys(out, source=Path("-")).publics == {
        signing.load(tmp_path / "pki" / name / "node.key").public for name in ("a", "b")
    }
    assert out.count("SHA256:") == 2
    assert not [text for text in private_texts(tmp_path) if text in out]


def test_show_reads_a_key_a_certificate_and_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three hold the same public half."""
    run(["keys", "init", "--dir", "pki", "--node", "a"])
    capsys.readouterr()
    key = signing.load(tmp_path / "pki" / "a" / "node.key")
    for place in ("pki/a/node.key", "pki/a/node.crt", "pki/trusted.keys", "pki"):
        assert run(["keys", "show", place, "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)["keys"]
        assert (shown["public_key"], shown["fingerprint"]) == (key.public_text, key.fingerprint)


def test_show_of_a_data_directory_is_the_nodes_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By --dir, by BASE_DATA_DIR, or beside the database of BASE_SHARDS."""
    key = signing.load_or_create(tmp_path / "data" / ".basenet")
    assert run(["keys", "show", "--dir", "data/.basenet"]) == 0
    monkeypatch.setenv("BASE_DATA_DIR", str(tmp_path / "data" / ".basenet"))
    assert run(["keys", "show"]) == 0
    monkeypatch.delenv("BASE_DATA_DIR")
    monkeypatch.setenv("BASE_SHARDS", "data/app.db")
    assert run(["keys", "show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [key.public_text] * 3


def test_show_follows_the_signing_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path or the key itself; the key itself is not printed."""
    key = signing.generate(tmp_path / "my.key")
    monkeypatch.setenv("BASE_SIGNING_KEY", "my.key")
    assert run(["keys", "show"]) == 0
    assert key.public_text in capsys.readouterr().out
    monkeypatch.setenv("BASE_SIGNING_KEY", f"base64:{SEED_TEXT}")
    assert run(["keys", "show"]) == 0
    out = capsys.readouterr().out
    assert out.split()[2] == "BASE_SIGNING_KEY"
    assert SEED_TEXT not in out


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        ([], 3),
        (["no.key"], 3),
        (["--dir", "nowhere"], 3),
        (["rubbish"], 2),
        (["rubbish", "--dir", "."], 2),
    ],
)
def test_show_of_what_is_no_key_is_one_sentence(
    arguments: list[str],
    exit_code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And makes no key: looking is not a first start."""
    (tmp_path / "rubbish").write_text("rubbish")
    (tmp_path / "rubbish").chmod(0o600)
    assert run(["keys", "show", *arguments]) == exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["rubbish"]


def test_age_makes_an_identity_file_and_shows_its_recipient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the recipient is printed; a second time the file is kept."""
    assert run(["keys", "age", "archive.key"]) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "archive.key"
    (identity,) = age.load_identities(str(path))
    assert (out, err) == (f"{age.format_recipient(identity.recipient)}\n", "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert run(["keys", "age", "archive.key", "--json"]) == 4
    assert run(["keys", "age", "other.key", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipient"].startswith("age1")
    assert run(["keys", "age", "archive.key", "--show"]) == 0
    key_id = identity.recipient.key_id.hex()
    assert capsys.readouterr().out == f"{out.strip()} key id {key_id}\n"
    assert run(["keys", "age", "archive.key", "--show", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["identities"]
    assert shown == {"recipient": out.strip(), "key_id": key_id}
    assert run(["keys", "age", "no.key", "--show"]) == 3
    assert age.load_identities(str(path)) == (identity,)
