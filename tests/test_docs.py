"""What README and docs/ say must be what the program does: commands, settings, metrics, links."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from basenet.cli.main import COMMANDS, LazyGroup, cli
from basenet.config.variables import PROMISES, TABLE
from basenet.control.metrics import LOCK_HELD_NAME, METRIC_NAMES
from basenet.control.surface import ShardState

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALERTS = ROOT / "deploy" / "prometheus-alerts.yml"
OPERATIONS = ROOT / "docs" / "operations.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
EXAMPLES = ROOT / "docs" / "examples.md"
PITFALLS = ROOT / "docs" / "pitfalls.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(basenet [^`]+)`")
METRIC = re.compile(r"\bbase_[a-z_]+[a-z]\b")
VARIABLE = re.compile(r"\bBASE_[A-Z0-9_]+\b")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# One is printed by the daemon, the other stands for a name of the application's own.
NO_SETTINGS = {"BASE_LISTEN_ADDR", "BASE_URL"}
PATIENCE_S = 60


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


def shell_lines(text: str) -> Iterator[str]:
    """Yield the command lines of ``text``, continued lines joined, prompts and comments cut off."""
    for line in text.replace("\\\n", " ").splitlines():
        yield re.sub(r"(^|\s)#.*$", "", line.strip().removeprefix("$ "))


def split_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each ``basenet`` command of a shell line: also after && and in $( )."""
    for piece in re.split(r"&&|\|\||[;|&()]|>+ *\S+|2>", line.replace("$(", "(")):
        try:
            words = shlex.split(piece)
        except ValueError:
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and words[0] in {"sudo", "exec", "time", "timeout", "env", "if", "!", "until"}:
            words = words[words.index("basenet") :] if "basenet" in words else []
        if words and Path(words[0]).name == "basenet":
            yield words[1:]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that ``words`` name, and what is left of them."""
    command: click.Command = cli
    left = list(words)
    while isinstance(command, click.Group) and left and not left[0].startswith("-"):
        with click.Context(command) as context:
            found = command.get_command(context, left[0])
        assert found is not None, f"there is no command `basenet {' '.join(words)}`"
        command = found
        left.pop(0)
    return command, left


def known_options(command: click.Command) -> set[str]:
    options = {"-h", "--help"} | ({"--version"} if isinstance(command, LazyGroup) else set())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            options.update(parameter.opts, parameter.secondary_opts)
    return options


def fenced_commands(page: Path) -> list[list[str]]:
    blocks = [body for kind, body in FENCE.findall(page.read_text()) if kind in {"sh", "console"}]
    return [
        words for body in blocks for line in shell_lines(body) for words in split_commands(line)
    ]


def inline_commands(page: Path) -> list[list[str]]:
    text = FENCE.sub("", page.read_text())
    return [words for line in INLINE.findall(text) for words in split_commands(line)]


@pytest.mark.parametrize("page", [OPERATIONS, ROOT / "README.md", EXAMPLES], ids=page_id)
def test_every_command_of_a_code_block_is_understood(page: Path) -> None:
    """Its options exist and its values are of the right kind: click parses it whole."""
    commands = fenced_commands(page)
    assert len(commands) >= 3
    for words in commands:
        command, left = resolve(words)
        if "--help" in left or "-h" in left or not left:
            continue
        # A variable of the shell stands for a number as well as for a text.
        plain = [re.sub(r"\$\w+", "1", word) for word in left]
        command.make_context("basenet", plain).close()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    """In a sentence a value may be a placeholder, but commands and options are real."""
    for words in inline_commands(page):
        command, left = resolve(words)
        options = {word.split("=")[0] for word in left if word.startswith("-")}
        assert options <= known_options(command), words


def test_every_command_is_documented() -> None:
    """The manual of operations or the README shows each of them at work."""
    shown = {words[0] for page in PAGES for words in fenced_commands(page) if words}
    assert set(COMMANDS) <= shown


@pages
def test_every_setting_that_is_named_exists(page: Path) -> None:
    """The loader refuses an unknown BASE_ name, so a wrong one would not even start."""
    assert set(VARIABLE.findall(page.read_text())) <= set(TABLE) | set(PROMISES) | NO_SETTINGS


@pages
def test_every_metric_that_is_named_is_one_that_is_shown(page: Path) -> None:
    """Whoever copies a name into a query gets an answer."""
    series = {f"{LOCK_HELD_NAME}_{part}" for part in ("bucket", "count", "sum")}
    assert set(METRIC.findall(page.read_text())) <= set(METRIC_NAMES) | series


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a page's headings get on the usual hosts."""
    text = FENCE.sub("", page.read_text())
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in HEADING.findall(text)
    }


@pages
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """Files exist, and so do the headings that are linked to."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), target


def test_every_page_is_linked_to() -> None:
    """A newcomer who follows links from the README reaches each page."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in LINK.findall(page.read_text()):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file in PAGES:
                waiting.append(file)
    assert [page_id(page) for page in PAGES if page not in reached] == []


def test_every_alert_has_its_section() -> None:
    """At 3 a.m. the alert's name leads to symptom, cause and commands."""
    alerts = re.findall(r"^ {6}- alert: (\w+)$", ALERTS.read_text(), re.MULTILINE)
    sections = re.split(r"^### ", OPERATIONS.read_text(), flags=re.MULTILINE)[1:]
    by_name = {section.split("\n", 1)[0]: section for section in sections}
    assert [alert for alert in alerts if alert not in by_name] == []
    for alert in alerts:
        for word in ("**Symptom.**", "**Cause.**", "**Do.**"):
            assert word in by_name[alert], (alert, word)


def test_every_state_is_explained() -> None:
    """What `status` shows in the column STATE stands in the table of states."""
    text = OPERATIONS.read_text()
    assert [state for state in ShardState if f"| `{state}` |" not in text] == []


def test_every_dependency_is_explained_with_its_range() -> None:
    """The table of dependencies is that of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["s3"], *extras["gcs"], *extras["client"]]
    text = ARCHITECTURE.read_text()
    missing = [item for item in wanted if f"| `{item.split(';')[0].strip()}` |" not in text]
    assert missing == []


def test_every_room_and_file_on_the_map_exists() -> None:
    """Paths of the tree that the pages name lead to files."""
    named = re.compile(r"`((?:basenet|cmd|tests|deploy|docs)/[\w./-]+)`")
    placeholders = re.compile(r"/room/|NAME")
    missing = {
        path
        for page in PAGES
        for path in named.findall(page.read_text())
        if not (placeholders.search(path) or (ROOT / path).exists())
    }
    assert missing == set()


def test_every_room_is_on_the_map() -> None:
    """A package that architecture.md does not mention cannot be found by a newcomer."""
    rooms = {path.parent.name for path in (ROOT / "basenet").glob("*/__init__.py")}
    text = ARCHITECTURE.read_text()
    assert [room for room in sorted(rooms) if f"| `{room}` |" not in text] == []


@pytest.mark.parametrize("room", ["sqlite", "journal", "archive", "daemon", "control", "wire"])
def test_every_file_of_a_room_is_in_its_theory(room: str) -> None:
    """The docstring of the room is its map: whoever looks for something starts there."""
    folder = ROOT / "basenet" / room
    theory = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    words = set(re.findall(r"\w+", theory))
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert sorted(names - words) == []


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_of(path: Path) -> set[str]:
    """Return the names of the functions of a file, none if there is no such file."""
    if not path.exists():
        return set()
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in nodes if isinstance(node, functions)}


def test_every_test_that_is_named_exists() -> None:
    """Whoever doubts a sentence can run the test beside it."""
    named = {pair for page in PAGES for pair in NAMED_TEST.findall(page.read_text())}
    missing = [pair for pair in sorted(named) if pair[1] not in functions_of(ROOT / pair[0])]
    assert missing == []
    assert len(named) > 50


def test_every_danger_has_a_test_beside_it() -> None:
    """A row of pitfalls.md says what is done, and which test fails when it is not."""
    rows = re.findall(r"^\| ([PQ]\d+) \|(.+)\|$", PITFALLS.read_text(), re.MULTILINE)
    assert len(rows) > 30
    for name, row in rows:
        cells = row.split(" | ")
        assert len(cells) == 3, name
        assert NAMED_TEST.search(cells[2]), name


def sentences_of_the_program() -> Iterator[str]:
    """Yield every text in basenet/, what is put into it replaced by a letter."""
    for path in (ROOT / "basenet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "X"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_command_that_the_program_speaks_of_exists() -> None:
    """An error that says what to do names commands and options that there are."""
    lines = {line for text in sentences_of_the_program() for line in INLINE.findall(text)}
    assert len(lines) > 10
    for line in lines:
        for words in split_commands(" ".join(line.split())):
            command, left = resolve(words)
            options = {word.split("=")[0] for word in left if word.startswith("-")}
            assert options <= known_options(command), words
            takes_words = any(isinstance(item, click.Argument) for item in command.params)
            assert takes_words or left[:1] == [] or left[0].startswith("-"), words


def logged_events() -> set[str]:
    """Return the names of all events that the daemon logs."""
    found = set()
    for path in (ROOT / "basenet" / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"info", "warning", "error"}
                and ast.unparse(node.func.value).endswith("log")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_logged_event_is_explained() -> None:
    """An operator who meets a line of the log finds its event in the table of events."""
    text = OPERATIONS.read_text()
    assert [event for event in sorted(logged_events()) if f"`{event}`" not in text] == []


# -- examples that are run ---------------------------------------------------------------------


def examples() -> dict[str, str]:
    """Return the scripts of docs/examples.md by their headings."""
    found = {}
    for section in re.split(r"^## ", EXAMPLES.read_text(), flags=re.MULTILINE)[1:]:
        blocks = [body for kind, body in FENCE.findall(section) if kind == "sh"]
        if blocks:
            found[section.split("\n", 1)[0]] = "".join(blocks)
    return found


def run_script(script: str, directory: Path) -> None:
    """Run ``script`` in ``directory`` as bash does for a careful user; nothing of it survives."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BASE")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "BASE_LISTEN_HTTP": "127.0.0.1:0",
    }
    said = directory / "said.txt"
    with said.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        end_group(process.pid)
        process.wait()
    assert code == 0, said.read_text(errors="replace")[-4000:]


def end_group(group: int) -> None:
    """End what a script has left running, and return when it is gone."""
    deadline = time.monotonic() + PATIENCE_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        while time.monotonic() < deadline:
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def test_the_session_of_the_readme_runs(tmp_path: Path) -> None:
    """What a newcomer copies from the README works as it stands."""
    section = (ROOT / "README.md").read_text().split("## Five minutes", 1)[1].split("\n## ")[0]
    scripts = [body for kind, body in FENCE.findall(section) if kind == "sh" and "serve" in body]
    run_script(scripts[0], tmp_path)


@pytest.mark.system
@pytest.mark.parametrize("title", sorted(examples()))
def test_every_example_runs(title: str, tmp_path: Path) -> None:
    """Each script of docs/examples.md does what its text says; it checks itself."""
    run_script(examples()[title], tmp_path)
