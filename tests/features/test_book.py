"""The order book against a plain dictionary, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.features import OrderBook, usable_number, usable_price

levels = st.lists(st.tuples(st.integers(1, 12).map(float), st.sampled_from((0.0, 1.0, 2.5))), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), levels, levels), max_size=10))
def test_the_book_is_a_sorted_dictionary(updates: list[tuple[bool, Any, Any]]) -> None:
    """Best levels, mid and depth are those of dictionaries that take the same changes."""
    book = OrderBook()
    bids: dict[float, float] = {}
    asks: dict[float, float] = {}
    for delta, bid_levels, ask_levels in updates:
        kind = "delta" if delta else "snapshot"
        assert book.apply({"kind": kind, "bids": list(bid_levels), "asks": list(ask_levels)})
        if not delta:
            bids, asks = {}, {}
        for side, changes in ((bids, bid_levels), (asks, ask_levels)):
            for price, qty in changes:
                side[price] = qty
            for price in [price for price, qty in side.items() if not qty]:
                del side[price]
        assert book.best_bid() == (max(bids.items()) if bids else None)
        assert book.best_ask() == (min(asks.items()) if asks else None)
        assert book.mid() == ((max(bids) + min(asks)) / 2 if bids and asks else None)
        assert book.depth(3)[0] == pytest.approx(sum(qty for _, qty in sorted(bids.items())[-3:]))
        assert book.top(2)[1] == sorted(asks.items())[:2]


@pytest.mark.parametrize(
    "payload",
    [
        {"bids": [], "asks": [], "kind": "l2update"},
        {"bids": []},
        {"bids": None, "asks": []},
        {"bids": [[1.0]], "asks": []},
        {"bids": [["1.0", 1.0]], "asks": []},
        {"bids": [[0.0, 1.0]], "asks": []},
        {"bids": [], "asks": [[1.0, -1.0]]},
        {"bids": [], "asks": [[float("nan"), 1.0]]},
        {"bids": [], "asks": [[1.0, True]]},
        {"bids": {}, "asks": []},
    ],
)
def test_a_malformed_book_changes_nothing(payload: dict[str, Any]) -> None:
    book = OrderBook()
    assert book.apply({"bids": [[99, 1]], "asks": [[101, 1]]})
    assert not book.apply(payload)
    assert book.mid() == 100.0


@pytest.mark.parametrize("value", ["1", True, None, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_number(value: Any) -> None:
    assert usable_number(value) is None
    assert usable_price(value) is None
    assert (usable_price(0), usable_price(-1.0), usable_number(-1)) == (None, None, -1.0)


def test_absent_and_null_kind_are_snapshots_and_further_elements_of_a_level_are_ignored() -> None:
    book = OrderBook()
    assert book.apply({"kind": None, "bids": [[99.0, 1.0, "id"]], "asks": [[101.0, 1.0], [101.0, 2.0]]})
    assert (book.best_bid(), book.best_ask()) == ((99.0, 1.0), (101.0, 2.0))
    assert book.visible() == ([(99.0, 1.0)], [(101.0, 2.0)])
