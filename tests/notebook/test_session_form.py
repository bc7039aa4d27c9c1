"""The form that makes a session: prefilled from the logs, errors beside the field."""

from __future__ import annotations

import pytest

from replaylab.errors import SessionError
from replaylab.notebook.session_form import BuildForm, BuildRequest
from replaylab.timestamps import parse_ns

SPAN = (parse_ns("2025-11-18T10:00:12.5Z"), parse_ns("2025-11-18T10:59:58Z"))


@pytest.fixture
def requests() -> list[BuildRequest]:
    return []


@pytest.fixture
def form(requests: list[BuildRequest]) -> BuildForm:
    made = BuildForm(requests.append)
    made.offer(["BTCUSDT", "ETHUSDT"], SPAN)
    return made


def test_it_is_prefilled_with_what_the_logs_cover(form: BuildForm, requests: list[BuildRequest]) -> None:
    """Without touching anything, Create asks for everything that there is, in whole minutes."""
    form.create.click()
    assert requests == [
        BuildRequest(
            start="2025-11-18T10:00:00Z",
            end="2025-11-18T11:00:00Z",
            symbols=["BTCUSDT", "ETHUSDT"],
            include_types=None,
            max_events=None,
            session_id=None,
            notes=None,
        )
    ]


def test_slider_and_texts_follow_each_other(form: BuildForm) -> None:
    form.range.value = (15, 30)
    assert (form.start.value, form.end.value) == ("2025-11-18T10:15:00Z", "2025-11-18T10:30:00Z")
    form.end.value = "2025-11-18T10:45:30.5Z"
    assert form.range.value == (15, 46)
    assert form.end.value == "2025-11-18T10:45:30.5Z", "what was typed stays as it was typed"


def test_typed_values_survive_new_logs(form: BuildForm) -> None:
    form.start.value = "2025-11-18T10:20:00Z"
    form.symbols.value = ("ETHUSDT",)
    form.offer(["BTCUSDT", "ETHUSDT", "XRPUSDT"], SPAN)
    assert form.start.value == "2025-11-18T10:20:00Z"
    assert form.symbols.value == ("ETHUSDT",)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start", "yesterday", "ISO time"),
        ("end", "2025-11-18T09:00:00Z", "later than the start"),
        ("symbols", (), "at least one symbol"),
        ("types", (), "at least one type"),
        ("max_events", "many", "whole number"),
        ("session_id", "../evil", "session id"),
    ],
)
def test_an_error_stands_beside_its_field(
    form: BuildForm, requests: list[BuildRequest], field: str, value: object, message: str
) -> None:
    getattr(form, field).value = value
    form.create.click()
    assert requests == []
    assert message in form.errors[field].value
    assert [name for name, widget in form.errors.items() if widget.value] == [field]


def test_all_wrong_fields_are_shown_at_once(form: BuildForm) -> None:
    form.start.value, form.max_events.value = "x", "y"
    form.create.click()
    assert form.errors["start"].value
    assert form.errors["max_events"].value


def test_a_refusal_of_the_builder_is_shown_too(form: BuildForm) -> None:
    form.refused(SessionError("there is no log or market data of XYZ in data"))
    assert "XYZ" in form.errors["symbols"].value
