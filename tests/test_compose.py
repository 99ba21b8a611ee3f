"""deploy/compose.yaml: YAML that means three nodes which this program would accept."""

from pathlib import Path

import yaml

from basenet.config.loader import load
from basenet.config.model import Network

COMPOSE = Path(__file__).resolve().parents[1] / "deploy" / "compose.yaml"
NODES = ("n0", "n1", "n2")


def test_each_node_has_settings_that_load(tmp_path: Path) -> None:
    """The loader reads them as it would in the container, but for where the files lie."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services) == {"keys", *NODES}
    for name in NODES:
        environment = {key: str(text) for key, text in services[name]["environment"].items()}
        for key in ("BASE_TLS_CA", "BASE_TLS_SERVER_CERT", "BASE_TLS_SERVER_KEY"):
            assert environment[key].startswith("/keys/")
            file = tmp_path / f"{name}-{key}"
            file.write_text("")
            environment[key] = str(file)
        config = load(environment)
        assert config.network is Network.QUASAR
        assert config.node_id == name
        assert config.cluster.bootstrap_expect == len(NODES)
        assert {peer.host for peer in config.cluster.peers} == set(NODES)


def test_volumes_and_keys_fit() -> None:
    """Every volume is declared, the keys are made once, and no node may change them."""
    document = yaml.safe_load(COMPOSE.read_text())
    for name in NODES:
        mounts = document["services"][name]["volumes"]
        assert mounts == ["keys:/keys:ro", f"{name}:/var/lib/basenet"]
    assert set(document["volumes"]) == {"keys", *NODES}
    (command,) = document["services"]["keys"]["command"]
    assert command.startswith("test -e /var/lib/basenet/ca.crt || basenet keys init --dir")
    assert command.endswith(" ".join(NODES))
