"""The address of Redis: every way to write it works on a real server, and nothing of it is told but the place."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from holdfast.engine import ConfigurationError, Engine, Order
from holdfast.engine.addresses import Kind, read
from holdfast.engine.connection import Server
from holdfast.engine.servers import open_servers

PASSWORD = "p/w:@?#%+ é"
ESCAPED = "p%2Fw%3A%40%3F%23%25%2B%20%C3%A9"


def authority(directory: Path, name: str) -> tuple[Path, Path, Path]:
    """An authority of our own, and the certificate and key of 127.0.0.1 from it: the paths of the three."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, f"redis of {name}")]
    made = []
    for at in range(2):
        builder = (
            x509.CertificateBuilder()
            .issuer_name(names[0])
            .subject_name(names[at])
            .public_key(keys[at].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=at == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[at].public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        if at:
            there = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
            builder = builder.add_extension(there, critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()))
    paths = tuple(directory / f"{name}-{part}.pem" for part in ("ca", "cert", "key"))
    paths[0].write_bytes(made[0].public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(made[1].public_bytes(serialization.Encoding.PEM))
    paths[2].write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths[0], paths[1], paths[2]


class Tls:
    """A Redis that speaks TLS on one port and plain text on another, and wants a password."""

    def __init__(self, start_redis: Any, binary: str, directory: Path) -> None:
        self.ca, certificate, key = authority(directory, "ours")
        self.other_ca, *_ = authority(directory, "other")
        self.port, self.plain_port = free_port(), free_port()
        acl = directory / "users.acl"
        acl.write_text(
            "user default on nopass ~* &* +@all\nuser ann on >" + PASSWORD.replace(" ", "") + " ~* &* +@all\n"
        )
        options = {
            "--bind": "127.0.0.1",
            "--port": str(self.plain_port),
            "--tls-port": str(self.port),
            "--tls-ca-cert-file": str(self.ca),
            "--tls-cert-file": str(certificate),
            "--tls-key-file": str(key),
            "--tls-auth-clients": "no",
            "--aclfile": str(acl),
        }
        self.process = start_redis(binary, *(part for option in options.items() for part in option))
        self.login = f"ann:{ESCAPED.replace('%20', '')}@"

    def url(self, query: str = "") -> str:
        return f"rediss://{self.login}127.0.0.1:{self.port}/0{query}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def tls(server_binary: Any, start_redis: Any, tmp_path_factory: Any) -> Tls:
    binary = server_binary("installed")
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    if "libssl" not in linked:
        pytest.skip("this redis-server was built without TLS")
    return Tls(start_redis, binary, tmp_path_factory.mktemp("tls"))


async def sell(url: str, tmp_path: Path) -> None:
    """A sale with a batch that is larger than one packet, on this address."""
    async with Engine.connect(url, store=f"sqlite:///{tmp_path / 'store.db'}", listen=False) as engine:
        sale = f"gig-{time.monotonic_ns()}"
        await engine.create_sale(sale, name="Gig", capacity=1000)
        tickets = await engine.reserve_many(sale, [Order(f"b{at}", 1) for at in range(500)])
        assert {ticket.status for ticket in tickets} == {"reserved"}  # type: ignore[union-attr]
        listed = await engine.tickets(sale, limit=500)
        assert len(listed.items) == 500


async def test_tls_with_a_password(tls: Tls, tmp_path: Path) -> None:
    tls.process.empty()
    await sell(tls.url(f"?ssl_ca_certs={tls.ca}"), tmp_path)


def test_tls_on_the_event_loop_of_the_server(tls: Tls, tmp_path: Path) -> None:
    tls.process.empty()
    uvloop.run(sell(tls.url(f"?ssl_ca_certs={tls.ca}"), tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tls: tls.url(f"?ssl_ca_certs={tls.other_ca}"), "shows a certificate that is not trusted"),
        (lambda tls: tls.url(), "shows a certificate that is not trusted"),
        (lambda tls: tls.url(f"?ssl_ca_certs={tls.ca}").replace("127.0.0.1", "localhost"), "is not trusted"),
        (lambda tls: tls.url(f"?ssl_ca_certs={tls.ca}").replace("ann:", "ann:x"), "does not accept this user"),
        (lambda tls: tls.url(f"?ssl_ca_certs={tls.ca}").replace("ann:", "bob:"), "does not accept this user"),
        (lambda tls: tls.url("?ssl_ca_certs=/nowhere.pem"), "a file that the address names with ssl_, is not there"),
        (lambda tls: tls.url().replace(str(tls.port), str(tls.plain_port)), "cannot be reached"),
        (lambda tls: tls.url().replace("rediss:", "redis:"), "cannot be reached"),
        (lambda tls: f"unix://{tls.login}/nowhere.sock", "its socket, or a file"),
    ],
)
async def test_what_is_wrong_is_told_in_one_sentence(
    tls: Tls, tmp_path: Path, change: Any, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError, match=sentence) as told:
        async with Engine.connect(change(tls), store=f"sqlite:///{tmp_path / 'store.db'}"):
            pass
    assert "\n" not in str(told.value)
    for secret in (PASSWORD[:4], "p%2Fw", "é"):
        assert secret not in str(told.value) + caplog.text


async def test_a_server_that_does_not_speak_tls(tmp_path: Path) -> None:
    def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR who are you?\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match="does not speak TLS like this"):
            await Engine.connect(f"rediss://127.0.0.1:{port}", store=f"sqlite:///{tmp_path / 'store.db'}").start()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://localhost", "localhost:6379/0"),
        ("redis://:geheim@redis.example:6380/2", "redis.example:6380/2"),
        ("rediss://ann:geheim@[::1]:1/", "[::1]:1/0"),
        ("rediss://ann:geheim@h/0?ssl_ca_certs=/a@b.pem&ssl_password=geheim", "h:6379/0"),
        ("unix:///run/redis.sock?db=3", "/run/redis.sock"),
        ("unix://ann:geheim@/run/redis.sock", "/run/redis.sock"),
        ("redis://ann:ge%2Fheim%40@h", "h:6379/0"),
    ],
)
def test_the_place_of_an_address(url: str, place: str) -> None:
    server = Server(url)
    assert server.place == place
    assert "heim" not in repr(vars(server)["place"])


@pytest.mark.parametrize(
    ("url", "kind", "place", "hosts"),
    [
        ("redis+cluster://a", Kind.CLUSTER, "a:6379", (("a", 6379),)),
        ("redis+cluster://ann:ge%2Fheim@a:1,b.example:2,[::1]:3/", Kind.CLUSTER, "a:1,b.example:2,[::1]:3", None),
        ("rediss+cluster://:geheim@a,b?ssl_ca_certs=/a@b.pem", Kind.CLUSTER, "a:6379,b:6379", None),
        ("redis+sentinel://a/gig", Kind.SENTINELS, "a:26379/gig", (("a", 26379),)),
        (
            "redis+sentinel://ann:ge%40heim@a,b:1/gig/2?sentinel_password=geheim",
            Kind.SENTINELS,
            "a:26379,b:1/gig/2",
            None,
        ),
        ("rediss+sentinel://a/gig?ssl_cert_reqs=none", Kind.SENTINELS, "a:26379/gig", None),
    ],
)
def test_addresses_of_many(url: str, kind: Kind, place: str, hosts: Any) -> None:
    address = read(url)
    assert (address.kind, address.place) == (kind, place)
    assert hosts is None or address.hosts == hosts
    servers = open_servers(url)
    assert servers.place == place
    assert "heim" not in repr(address)
    assert "heim" not in str(servers.place)


def test_who_asks_the_sentinels_and_who_the_servers() -> None:
    address = read("rediss+sentinel://ann:one@a/gig/3?sentinel_username=sam&sentinel_password=two&ssl_ca_certs=/c.pem")
    assert address.node is not None
    assert address.sentinel is not None
    assert (address.group, address.node["username"], address.node["password"], address.node["db"]) == (
        "gig",
        "ann",
        "one",
        3,
    )
    assert (address.sentinel["username"], address.sentinel["password"]) == ("sam", "two")
    assert address.node["ssl_ca_certs"] == address.sentinel["ssl_ca_certs"] == "/c.pem"
    assert "db" not in address.sentinel


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis+cluster://geheim:x@a,,b",
        "redis+cluster://a/1",
        "redis+cluster://a?db=1",
        "redis+cluster://a:99999",
        "redis+cluster://a?sentinel_password=geheim",
        "redis+sentinel://a",
        "redis+sentinel://a/",
        "redis+sentinel://a/gig/geheim",
        "redis+sentinel://ann:ge/heim@a/gig",
        "redis+sentinel://ann:ge#heim@a/gig",
        "redis+other://a/gig",
        "unix+sentinel://a/gig",
        "geheim",
        "http://h/geheim",
        "redis://ann:12/geheim@h",
        "redis://ann:12?geheim@h",
        "redis://ann:12#geheim@h",
        "redis://ann:ge/heim@h",
        "redis://ann:geheim@h:port",
        "redis://h:6379/geheim",
        "redis://h?password=geheim",
        "redis://h?socket_timeout=1",
        "redis://h?decode_responses=geheim",
        "redis://h?db=geheim",
        "rediss://h?ssl_cert_reqs=geheim",
        "redis://h?ssl_password=geheim",
        "unix://ann:ge/heim@/run/redis.sock",
        "redis://ann:geheim@[h",
    ],
)
def test_an_address_that_cannot_be_right_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the Redis address is not usable") as told:
        open_servers(url)
    assert "heim" not in str(told.value)
    # Nor in what a traceback would show of where it came from.
    assert told.value.__suppress_context__
