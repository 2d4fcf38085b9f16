"""Times and pointers."""

from __future__ import annotations

import pytest
from pydantic_core import PydanticCustomError

from holdfast.http.models import instant_ms, instant_text, pointer

NOON = 1_795_780_800_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-11-27T12:00:00Z", NOON),
        ("2026-11-27t12:00:00z", NOON),
        ("2026-11-27 12:00:00Z", NOON),
        ("2026-11-27T12:00:00.000Z", NOON),
        ("2026-11-27T13:00:00+01:00", NOON),
        ("2026-11-27T06:30:00-05:30", NOON),
        ("2026-11-27T12:00:00.5Z", NOON + 500),
        ("2026-11-27T12:00:00.0019999Z", NOON + 1),
        ("1970-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_instants_in(text: str, value: int) -> None:
    assert instant_ms(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-27",
        "2026-11-27T12:00:00",
        "2026-11-27T12:00Z",
        "2026-11-27T12:00:00+0100",
        "2026-11-27T12:00:00+25:00",
        "2026-11-27T24:00:00Z",
        "2026-11-27T12:00:60Z",
        "2026-02-29T12:00:00Z",
        "2026-11-27T12:00:00.Z",
        "2026-11-27T12:00:00Z\n",
        "٢٠٢٦-11-27T12:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "1969-12-31T23:59:59.999Z",
        "9999-12-31T23:59:59.999-23:59",
        NOON,
        None,
        True,
    ],
)
def test_what_is_no_instant(text: object) -> None:
    with pytest.raises(PydanticCustomError):
        instant_ms(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (NOON, "2026-11-27T12:00:00.000Z"),
        (NOON + 7, "2026-11-27T12:00:00.007Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_instants_out(value: int, text: str) -> None:
    assert instant_text(value) == text
    assert instant_ms(text) == value


def test_pointers_are_escaped() -> None:
    assert pointer(()) == ""
    assert pointer(("lines", 0, "sku")) == "/lines/0/sku"
    assert pointer(("a/b~c",)) == "/a~1b~0c"
