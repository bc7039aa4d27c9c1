"""The one reader of a session's initial state."""

from __future__ import annotations

from typing import Any

import pytest

from replaylab.errors import SessionError
from replaylab.features import AccountStart, Carried, CarriedPart, InitialState
from replaylab.timestamps import NS_PER_DAY, parse_ns


def test_every_field_of_the_page_is_read() -> None:
    at = "2025-11-18T10:00:00Z"
    state = InitialState.read(
        {
            "symbols": {
                "BTCUSDT": {
                    "regime": "CALM",
                    "tradingBlocked": True,
                    "book": {"bids": [[99, 1], [98, 0]], "asks": [[101, 2]]},
                    "carried": {"closedAt": at, "parts": [{"timestamp": at, "realizedPnl": -3}]},
                    "lastExitAt": at,
                }
            },
            "account": {
                "dateKey": "2025-11-18",
                "realizedPnl": 1.0,
                "lowestRealizedPnl": -2.0,
                "entries": 4,
            },
        }
    )
    ns = parse_ns(at)
    one = state.of("BTCUSDT")
    assert (one.regime, one.trading_blocked, one.last_exit_ns) == ("CALM", True, ns)
    assert one.carried == Carried(ns, (CarriedPart(ns, -3.0),))
    assert one.order_book().top(5) == ([(99.0, 1.0)], [(101.0, 2.0)])
    assert state.account == AccountStart(ns // NS_PER_DAY, 1.0, -2.0, 4)
    assert InitialState.read(state) is state


@pytest.mark.parametrize("value", [None, {}, {"symbols": None}, {"symbols": {"A": 3}}, []])
def test_nothing_known_starts_from_nothing(value: Any) -> None:
    state = InitialState.read(value)
    assert state.of("A").book is None
    assert state.account is None


def test_a_malformed_book_is_none_and_other_kinds_of_values_are_defaults() -> None:
    entry = {"regime": 3, "tradingBlocked": 1, "book": {"bids": [[0, 1]], "asks": []}}
    assert InitialState.read({"symbols": {"A": entry}}).of("A") == InitialState().of("A")


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"carried": 3}, "carried"),
        ({"carried": {"closedAt": "soon", "parts": []}}, "closedAt"),
        ({"carried": {"closedAt": None, "parts": [{"realizedPnl": 1}]}}, "parts"),
        (
            {"carried": {"closedAt": None, "parts": [{"timestamp": "2025-11-18", "realizedPnl": "1"}]}},
            "parts",
        ),
        ({"lastExitAt": 5}, "lastExitAt"),
    ],
)
def test_what_would_change_results_silently_is_refused(entry: dict[str, Any], field: str) -> None:
    with pytest.raises(SessionError, match=rf"initialState\.symbols\.A\..*{field}"):
        InitialState.read({"symbols": {"A": entry}})


@pytest.mark.parametrize(
    "account",
    [
        3,
        {"realizedPnl": 1},
        {"dateKey": "2025-11-18", "realizedPnl": None},
        {"dateKey": "2025-11-18", "realizedPnl": -1, "lowestRealizedPnl": 0},
        {"dateKey": "2025-11-18", "entries": 1.5},
    ],
)
def test_a_malformed_account_is_refused(account: Any) -> None:
    with pytest.raises(SessionError, match=r"initialState\.account"):
        InitialState.read({"account": account})
