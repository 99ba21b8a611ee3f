"""Addresses of peers from a real DNS server whose records change."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.asyncresolver
import pytest
import trio

from basenet.config.values import Endpoint
from basenet.transport.addresses import AddressBook, LookupFailed, Resolver

# A real server, which Debian has and PyPI has not.
pytestmark = pytest.mark.system


class DnsServer:
    """A dnsmasq of our own, on a port of its own."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("dnsmasq", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "dnsmasq is missing: apt-get install dnsmasq-base"
        self.hosts = directory / "hosts"
        self.write({"node-a.basenet": ["127.0.0.1", "::1"], "node-b.basenet": ["127.0.0.2"]})
        # Whoever runs beside this may take the port in between.
        while not self._start(program):
            self.stop()

    def _start(self, program: str) -> bool:
        """Start on a free port; return whether it serves there."""
        self.port = _free_port()
        self._process = subprocess.Popen(
            [
                program,
                "--no-daemon",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                f"--port={self.port}",
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                f"--user={_user()}",
                "--pid-file=",
                "--local=/basenet/",
                f"--addn-hosts={self.hosts}",
                "--local-ttl=1",
                "--neg-ttl=1",
                "--srv-host=_basenet._tcp.basenet,node-a.basenet,7102,0,10",
                "--srv-host=_basenet._tcp.basenet,node-b.basenet,7103,10,10",
            ],
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        said: list[bytes] = []
        for line in self._process.stderr:
            if b"read " in line:
                return True
            said.append(line)
        assert b"Address already in use" in b"".join(said), said
        return False

    def write(self, names: dict[str, list[str]]) -> None:
        self.hosts.write_text(
            "".join(f"{ip} {name}\n" for name, ips in names.items() for ip in ips)
        )

    def change(self, names: dict[str, list[str]]) -> None:
        self.write(names)
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def resolver(self) -> Resolver:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        return Resolver(resolver)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _user() -> str:
    import pwd  # noqa: PLC0415  (only here)

    return pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DnsServer]:
    server = DnsServer(tmp_path)
    yield server
    server.stop()


def ends(*pairs: tuple[str, int]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(host=host, port=port) for host, port in pairs)


async def test_names_give_all_their_addresses(server: DnsServer) -> None:
    """A and AAAA records of a name are all candidates, with the port of the entry."""
    answer = await server.resolver().resolve(Endpoint(host="node-a.basenet", port=9))
    assert set(answer.endpoints) == set(ends(("127.0.0.1", 9), ("::1", 9)))
    assert 0 < answer.ttl_s <= 1


async def test_services_give_hosts_and_ports(server: DnsServer) -> None:
    """An SRV entry names its ports itself, in the order of priority."""
    answer = await server.resolver().resolve(Endpoint(host="_basenet._tcp.basenet", port=1))
    assert answer.endpoints[-1] == Endpoint(host="127.0.0.2", port=7103)
    assert set(answer.endpoints[:-1]) == set(ends(("127.0.0.1", 7102), ("::1", 7102)))


@pytest.mark.parametrize("name", ["nobody.basenet", "_none._tcp.basenet"])
async def test_names_that_do_not_exist_say_so(server: DnsServer, name: str) -> None:
    """The reason names the name."""
    with pytest.raises(LookupFailed, match=name):
        await server.resolver().resolve(Endpoint(host=name, port=9))


@asynccontextmanager
async def kept(
    server: DnsServer, *entries: Endpoint
) -> AsyncIterator[trio.MemoryReceiveChannel[object]]:
    """What an address book tells, in order."""
    send, receive = trio.open_memory_channel[object](100)
    book = AddressBook(
        entries,
        resolver=server.resolver(),
        on_change=send.send_nowait,
        on_problem=lambda entry, text: send.send_nowait((entry.host, text)),
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(book.run)
            yield receive
            nursery.cancel_scope.cancel()


async def test_changed_records_are_followed(server: DnsServer) -> None:
    """A name that gets another address is dialled there soon after its TTL."""
    async with kept(server, Endpoint(host="node-b.basenet", port=9)) as told:
        assert await told.receive() == ends(("127.0.0.2", 9))
        server.change({"node-b.basenet": ["127.0.0.7", "127.0.0.3"]})
        assert await told.receive() == ends(("127.0.0.3", 9), ("127.0.0.7", 9))


async def test_a_name_that_fails_keeps_its_last_answer_and_harms_no_other(
    server: DnsServer,
) -> None:
    """Only the name that changed changes; the lost one stays as it was, and is reported."""
    entries = ends(("node-a.basenet", 9), ("node-b.basenet", 9), ("10.0.0.1", 5))
    async with kept(server, *entries) as told:
        while await told.receive() != ends(
            ("127.0.0.1", 9), ("::1", 9), ("127.0.0.2", 9), ("10.0.0.1", 5)
        ):
            pass
        server.change({"node-a.basenet": ["127.0.0.4"]})
        seen = [await told.receive(), await told.receive()]
        assert ends(("127.0.0.4", 9), ("127.0.0.2", 9), ("10.0.0.1", 5)) in seen
        assert any(isinstance(item, tuple) and item[0] == "node-b.basenet" for item in seen)


async def test_a_dead_server_changes_nothing(server: DnsServer) -> None:
    """Without an answer the last good one stands."""
    async with kept(server, Endpoint(host="node-b.basenet", port=9)) as told:
        assert await told.receive() == ends(("127.0.0.2", 9))
        server.stop()
        problem = await told.receive()
        assert isinstance(problem, tuple)
        assert problem[0] == "node-b.basenet"
