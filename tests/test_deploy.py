"""What deploy/ says must be what the program does."""

import json
import re
from pathlib import Path

import pytest

from basenet.cli.main import COMMANDS
from basenet.config.variables import TABLE
from basenet.control.metrics import LOCK_HELD_NAME, METRIC_NAMES

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
ALERTS = DEPLOY / "prometheus-alerts.yml"
DASHBOARD = DEPLOY / "grafana-dashboard.json"
METRIC = re.compile(r"\bbase_[a-z_]+")
VARIABLE = re.compile(r"\bBASE_[A-Z0-9_]+")


def known_series() -> set[str]:
    return set(METRIC_NAMES) | {f"{LOCK_HELD_NAME}_{part}" for part in ("bucket", "count", "sum")}


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_that_is_named_is_one_that_is_shown(path: Path) -> None:
    """An alert on a name that nobody exposes never fires, which looks like health."""
    named = set(METRIC.findall(path.read_text()))
    assert len(named) >= 8
    assert named <= known_series()


def test_the_alerts_cover_what_costs_data() -> None:
    """Loss, a failing archive, laps and stopped shards each have their alert."""
    text = ALERTS.read_text()
    alerts = re.findall(r"^ {6}- alert: (\w+)$", text, re.MULTILINE)
    assert len(alerts) == len(set(alerts)) == text.count("expr:") == text.count("summary:")
    assert set(alerts) >= {
        "BasenetWorstCaseLoss",
        "BasenetArchiveFailing",
        "BasenetCaptureLapped",
        "BasenetShardStopped",
    }


def test_each_panel_of_the_dashboard_asks_something() -> None:
    """It is JSON that Grafana can import: panels with ids of their own, and queries in them."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 6
    for panel in panels:
        for target in panel["targets"]:
            assert METRIC.search(target["expr"]), panel["title"]
            assert target["expr"].count("(") == target["expr"].count(")"), panel["title"]


@pytest.mark.parametrize("name", ["basenet.service", "basenet.env.example", "Containerfile"])
def test_every_setting_that_is_named_exists(name: str) -> None:
    """The loader refuses an unknown BASE_ name, so a wrong one here would not even start."""
    named = set(VARIABLE.findall((DEPLOY / name).read_text()))
    assert named
    assert named <= set(TABLE)


def test_the_unit_starts_a_command_that_exists_and_restarts_it() -> None:
    """It comes back from everything but a configuration that cannot be used."""
    unit = (DEPLOY / "basenet.service").read_text()
    (command,) = re.findall(r"^ExecStart=\S+/basenet (\w+)$", unit, re.MULTILINE)
    assert command in COMMANDS
    lines = unit.splitlines()
    assert "Restart=always" in lines
    assert "RestartPreventExitStatus=2" in lines
    assert "EnvironmentFile=/etc/basenet/basenet.env" in lines
    assert "NoNewPrivileges=yes" in lines
    assert "ProtectSystem=strict" in lines


def test_the_container_is_nobody_special_and_can_be_asked_how_it_is() -> None:
    """Not root, no bytecode written at run time, and its health is `basenet status`."""
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM ")] == [
        "FROM python:3.12-slim AS build",
        "FROM python:3.12-slim",
    ]
    assert "USER 1000:1000" in lines
    assert any("PYTHONDONTWRITEBYTECODE=1" in line for line in lines)
    (health,) = [line for line in lines if line.startswith("HEALTHCHECK ")]
    assert health.endswith('CMD ["basenet", "status"]')
    assert "status" in COMMANDS


def test_assertions_stay_on() -> None:
    """`python -O` would strip what guards users' data, so nothing here asks for it."""
    for path in DEPLOY.iterdir():
        assert "PYTHONOPTIMIZE" not in path.read_text(), path.name
        assert "python -O" not in path.read_text(), path.name
