"""The command line: where settings come from, and how mistakes are told."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Expiration, Line
from holdfast.http import cli, serve
from holdfast.http.cli.app import SECRETS, commands
from holdfast.http.cli.listen import expiration_line
from holdfast.http.settings import ServeSettings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What `holdfast serve` would have served with."""
    taken: list[ServeSettings] = []
    monkeypatch.setattr(serve, "run", taken.append)
    return taken


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong call gets."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("holdfast: ")
    assert err.count("\n") == 1
    return err


def test_defaults(served: list[ServeSettings]) -> None:
    assert cli.main(["serve"]) == 0
    assert served == [ServeSettings()]
    (settings,) = served
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 1)
    assert settings.data_dir == Path("holdfast-data")


FLAGS: dict[str, Any] = {
    "host": "0.0.0.0",
    "port": 8181,
    "workers": 3,
    "data_dir": Path("elsewhere"),
    "redis": "redis://localhost/1",
    "redis_server": "/opt/redis-server",
    "store": "sqlite:///elsewhere.db",
    "secret": "a secret of sixteen or more",
    "operator_token": "a-token-for-the-operator",
    "buyer_token_key": "a key for buyer tokens, 32 bytes or more",
    "snapshot_ms": 500,
    "retention_ms": 1000,
}


def expected() -> ServeSettings:
    return ServeSettings(
        **FLAGS,
        trusted_proxy=("10.0.0.0/8", "192.0.2.1"),
        allow_origin=("https://a.example", "https://b.example"),
        recover=True,
        demo=True,
    )


def test_every_flag(served: list[ServeSettings]) -> None:
    arguments = [part for name, value in FLAGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments += ["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "192.0.2.1", "--recover", "--demo"]
    arguments += ["--allow-origin", "https://a.example", "--allow-origin", "https://b.example"]
    assert cli.main(["serve", *arguments]) == 0
    assert served == [expected()]


def test_every_variable(served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FLAGS.items():
        monkeypatch.setenv(f"HOLDFAST_{name.upper()}", str(value))
    monkeypatch.setenv("HOLDFAST_TRUSTED_PROXY", "10.0.0.0/8 192.0.2.1")
    monkeypatch.setenv("HOLDFAST_ALLOW_ORIGIN", "https://a.example https://b.example")
    monkeypatch.setenv("HOLDFAST_RECOVER", "1")
    monkeypatch.setenv("HOLDFAST_DEMO", "true")
    assert cli.main(["serve"]) == 0
    assert served == [expected()]


@pytest.mark.parametrize("separator", ["-", "_"])
def test_every_key_of_the_file(served: list[ServeSettings], separator: str) -> None:
    lines = [
        f"{name.replace('_', separator)} = {str(value) if isinstance(value, int) else repr(str(value))}"
        for name, value in FLAGS.items()
    ]
    lines += [
        f'trusted{separator}proxy = ["10.0.0.0/8", "192.0.2.1"]',
        f'allow{separator}origin = ["https://a.example", "https://b.example"]',
        "recover = true",
        "demo = true",
    ]
    Path("holdfast.toml").write_text("\n".join(lines))
    assert cli.main(["serve"]) == 0
    assert served == [expected()]


def test_a_flag_beats_the_environment_which_beats_the_file(
    served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("holdfast.toml").write_text('port = 1\nhost = "one"\nstore = "sqlite:///one"\n')
    monkeypatch.setenv("HOLDFAST_PORT", "2")
    monkeypatch.setenv("HOLDFAST_HOST", "two")
    assert cli.main(["serve", "--port", "3"]) == 0
    (settings,) = served
    assert (settings.port, settings.host, settings.store) == (3, "two", "sqlite:///one")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["srve"], "serve"),
        (["serve", "now"], "now"),
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--port"], "--port"),
        (["serve", "--port", "eighty"], "eighty"),
        (["serve", "--port", "65536"], "65535"),
        (["serve", "--port", "-1"], "--port"),
        (["serve", "--workers", "0"], "--workers"),
        (["serve", "--workers", "65"], "64"),
        (["serve", "--snapshot-ms", "0"], "--snapshot-ms"),
        (["serve", "--retention-ms", "-1"], "--retention-ms"),
        (["listen", "--port", "1"], "--port"),
        (["recover", "--workers", "1"], "--workers"),
        (["audit", "--workers", "1"], "--workers"),
        (["audit", "gig"], "gig"),
    ],
)
def test_a_mistake_gets_one_line(
    capsys: pytest.CaptureFixture[str], served: list[ServeSettings], arguments: list[str], says: str
) -> None:
    assert says in complaint(capsys, *arguments)
    assert served == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prt = 1", "prt"),
        ("[serve]\nport = 1", "serve"),
        ("port = ", "holdfast.toml"),
        ('port = "eighty"', "eighty"),
        ("port = 70000", "65535"),
        ("\xff", "holdfast.toml"),
        ('operator_token = ["s3cret"]', "'operator_token' must be text"),
        ('redis = {password = "s3cret"}', "'redis' must be text"),
        ("secret = true", "'secret' must be text"),
    ],
)
def test_a_mistake_in_the_file(
    capsys: pytest.CaptureFixture[str], served: list[ServeSettings], text: str, says: str
) -> None:
    Path("holdfast.toml").write_text(text, encoding="latin-1")
    said = complaint(capsys, "serve")
    assert says in said
    assert "s3cret" not in said


def test_every_setting_that_is_not_shown_is_a_secret_of_the_file() -> None:
    assert {field.name.replace("_", "-") for field in fields(ServeSettings) if not field.repr} == set(SECRETS)


def test_the_file_is_shared_by_all_commands(served: list[ServeSettings]) -> None:
    Path("holdfast.toml").write_text("from_start = true\nport = 1\n")
    assert cli.main(["serve"]) == 0
    assert served[0].port == 1


def test_a_mistake_in_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_PORT", "eighty")
    assert "eighty" in complaint(capsys, "serve")


def test_secrets_are_not_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_OPERATOR_TOKEN", "s3cret")
    assert "s3cret" not in complaint(capsys, "serve", "--data-dir", "d")
    monkeypatch.setenv("HOLDFAST_OPERATOR_TOKEN", "long-enough-s3cret")
    monkeypatch.setenv("HOLDFAST_BUYER_TOKEN_KEY", "short-s3cret")
    assert "s3cret" not in complaint(capsys, "serve", "--data-dir", "d")
    assert "s3cret" not in repr(ServeSettings(secret="s3cret", operator_token="s3cret", buyer_token_key="s3cret"))


def test_a_line_of_listen() -> None:
    expiration = Expiration("gig", 1, 7, "gig", "gig.t", (Line("general", 2),), 1_795_780_800_000, 1_795_780_800_020)
    assert expiration_line(expiration) == (
        '{"slot": "gig", "epoch": 1, "sequence": 7, "sale": "gig", "ticket": "gig.t", '
        '"lines": [{"sku": "general", "quantity": 2}], '
        '"expired_at": "2026-11-27T12:00:00.000Z", "at": "2026-11-27T12:00:00.020Z"}'
    )


def test_a_variable_that_is_no_setting_is_told(
    served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_PROT", "1")
    assert cli.main(["serve"]) == 0
    assert capsys.readouterr().err == "holdfast: HOLDFAST_PROT is set, and there is no such setting\n"


def test_the_list_of_commands_needs_neither_the_engine_nor_the_server() -> None:
    code = (
        "import sys; from holdfast.http.cli import main; main([]); "
        "print([each for each in ('asyncio', 'redis', 'aiohttp', 'holdfast.engine') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_that_are_listed_say_what_they_do() -> None:
    # The list has sentences of its own, so that it needs none of the commands loaded.
    for words, command in commands():
        assert command.default_command is not None
        if len(words) > 1:
            continue
        assert inspect.getdoc(command.default_command).splitlines()[0] == command.help  # type: ignore[union-attr]
