"""docs/howto/nginx.md: its configuration, in a real nginx in front of a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from documents import ROOT, environment, examples

from holdfast.http import server as http_server
from holdfast.http.bodies import BATCH_BYTES_MAX
from holdfast.http.direct import UNREAD_SECONDS

PAGE = (ROOT / "docs" / "howto" / "nginx.md").read_text()
TOKEN = "operator-token-for-tests"

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")


class Front(NamedTuple):
    """nginx with the page's configuration, and what it stands in front of."""

    port: int
    tls: ssl.SSLContext


def free_ports(count: int) -> list[int]:
    import socket

    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server started as the page says."""
    (command,) = re.findall(r"^holdfast (serve .*)$", PAGE, re.MULTILINE)
    words = command.replace("--port 8080", "--port 0").replace("--workers 4", "--workers 2").split()
    directory = tmp_path_factory.mktemp("holdfast")
    process = subprocess.Popen(
        ["holdfast", *words],
        cwd=directory,
        env=environment() | {"HOLDFAST_OPERATOR_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield next(line for line in process.stdout if "serves on" in line).rpartition("//")[2].strip()
    finally:
        process.terminate()
        process.stdout.read()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def front(holdfast: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx with the configuration of the page: other ports, a certificate of our own, and nothing else changed."""
    directory = tmp_path_factory.mktemp("nginx")
    plain, port = free_ports(2)
    (block,) = examples(PAGE, "nginx")
    site = block.text
    for old, new in (
        ("server 127.0.0.1:8080 ", f"server {holdfast} "),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("/etc/ssl/shop.example/fullchain.pem", str(directory / "cert.pem")),
        ("/etc/ssl/shop.example/privkey.pem", str(directory / "key.pem")),
    ):
        assert site.count(old) == 1, old
        site = site.replace(old, new)
    # What the configuration says of the stream must do alone: the header that says the same is passed over.
    site = site.replace(
        "    proxy_http_version 1.1;\n", "    proxy_ignore_headers X-Accel-Buffering;\n    proxy_http_version 1.1;\n"
    )
    write_certificate(directory)
    (directory / "site.conf").write_text(site)
    temporary = "\n".join(
        f"{kind}_temp_path {directory / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"pid {directory / 'pid'};\nworker_processes 1;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}\ninclude {directory / 'site.conf'};\n}}\n"
    )
    # As root, nginx serves as another user, who must be able to come here.
    user = ["-g", "daemon off; user root;"] if os.geteuid() == 0 else ["-g", "daemon off;"]
    command = ["nginx", "-e", str(directory / "error.log"), "-p", str(directory), "-c", str(directory / "nginx.conf")]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen([*command, *user], stderr=subprocess.DEVNULL, start_new_session=True)
    tls = ssl.create_default_context(cafile=str(directory / "cert.pem"))
    try:
        give_up = time.monotonic() + 10
        while not (directory / "pid").exists() or not (directory / "pid").read_text().strip():
            assert process.poll() is None, (directory / "error.log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        yield Front(port, tls)
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)


def write_certificate(directory: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
def call(front: Front) -> Iterator[Any]:
    """Calls from an address of the loopback network, each address on one connection: status and answer."""
    connections: dict[str, HTTPSConnection] = {}

    def ask(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, HTTPResponse]:
        if address not in connections:
            connections[address] = HTTPSConnection(
                "127.0.0.1", front.port, context=front.tls, source_address=(address, 0), timeout=20
            )
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connections[address].request(method, path, None if body is None else json.dumps(body), sent)
        answer = connections[address].getresponse()
        return answer.status, answer

    yield ask
    for connection in connections.values():
        connection.close()


INSIDE = "127.0.0.1"


def a_sale(call: Any, sale: str, **fields: Any) -> None:
    body = {"id": sale, "name": sale, "capacity": 10} | fields
    status, answer = call(INSIDE, "POST", "/sales", body, Authorization=f"Bearer {TOKEN}")
    assert status == 201, answer.read()
    answer.read()


def test_a_purchase_through_nginx(call: Any) -> None:
    a_sale(call, "through")
    ann = {"X_Buyer_Fingerprint": "buyer-ann", "Idempotency_Key": "cart-77"}
    status, answer = call(INSIDE, "POST", "/sales/through/tickets", {"quantity": 2}, **ann)
    assert status == 201
    ticket = json.loads(answer.read())["id"]
    status, answer = call(INSIDE, "POST", f"/tickets/{ticket}/payment", **ann)
    assert (status, json.loads(answer.read())["status"]) == (200, "purchased")
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
    assert answer.headers["Strict-Transport-Security"]
    for path in ("/readyz", "/docs", "/docs/errors", "/docs/swagger-ui.css", "/openapi.json", "/sales/through"):
        status, answer = call("127.0.0.1", "GET", path)
        assert (status, bool(answer.read())) == (200, True), path


def test_the_address_of_the_client_is_believed_from_nginx_alone(call: Any) -> None:
    a_sale(call, "addresses", max_per_buyer=1)

    def reserve(address: str, **headers: str) -> int:
        status, answer = call(address, "POST", "/sales/addresses/tickets", {"quantity": 1}, **headers)
        answer.read()
        return int(status)

    assert reserve("127.0.0.2") == 201
    assert reserve("127.0.0.2") == 409, "the same buyer"
    assert reserve("127.0.0.3") == 201, "another one"
    assert reserve("127.0.0.3", X_Forwarded_For="127.0.0.9") == 409, "who cannot say to be a third"


def test_events_arrive_when_they_happen(call: Any) -> None:
    a_sale(call, "live")
    status, stream = call("127.0.0.4", "GET", "/sales/live/stream")
    assert status == 200

    def counts() -> Any:
        while not (line := stream.readline()).startswith(b"data:"):
            assert line
        return line

    assert b'"reserved":0' in counts()
    # Without an end of the answer, and far from filling any buffer.
    status, answer = call(INSIDE, "POST", "/sales/live/tickets", {"quantity": 3}, X_Buyer_Fingerprint="buyer-ann")
    assert (status, bool(answer.read())) == (201, True)
    assert b'"reserved":3' in counts()


def test_who_asks_too_often_waits_and_who_watches_is_inside(call: Any) -> None:
    def statuses(address: str, *paths: str) -> list[int]:
        found = []
        for path in paths:
            status, answer = call(address, "GET", path)
            answer.read()
            found.append(status)
        return found

    crowd = statuses("127.0.0.7", *["/sales/nothing"] * 100)
    assert set(crowd) == {404, 429}
    assert crowd[:20] == [404] * 20
    assert statuses("127.0.0.8", "/sales/nothing", "/", "/sales", "/readyz", "/metrics") == [404, 403, 403, 403, 403]


def test_its_figures_are_those_of_the_server() -> None:
    (block,) = examples(PAGE, "nginx")
    assert f"client_max_body_size {BATCH_BYTES_MAX // 1024}k;" in block.text
    idle, read = (int(seconds) for seconds in re.findall(r"(?:keepalive|read)_timeout (\d+)s;", block.text))
    assert idle < http_server.KEEP_ALIVE_SECONDS
    assert read > UNREAD_SECONDS
    assert f"after {http_server.KEEP_ALIVE_SECONDS:.0f} s" in block.text
