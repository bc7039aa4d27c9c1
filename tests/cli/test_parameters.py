"""Texts of the command line become exactly the values that a person means."""

from __future__ import annotations

import pytest

from replaylab.cli.terminal import parse_grid, parse_params, scoring_params, trading_params
from replaylab.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.7", 0.7),
        ("3", 3),
        ("none", None),
        ("None", None),
        ("true", True),
        ("false", False),
        ("TREND", ("TREND",)),
        ("TREND+RANGE", ("TREND", "RANGE")),
        ("", ()),
        ("-0.5", -0.5),
        ("1e-3", 0.001),
    ],
)
def test_a_value(text: str, value: object) -> None:
    assert parse_params([f"x={text}"]) == {"x": value}


def test_params_become_trading_params() -> None:
    params = trading_params(["entry_threshold=0.7", "exit_threshold=0.1", "allowed_regimes=TREND+RANGE"])
    assert (params.entry_threshold, params.exit_threshold) == (0.7, 0.1)
    assert params.allowed_regimes == ("TREND", "RANGE")
    assert trading_params(None) == trading_params([])


def test_no_scoring_texts_mean_the_default() -> None:
    assert scoring_params(None) is None
    found = scoring_params(["interval_ms=250"])
    assert found is not None
    assert found.interval_ms == 250


def test_a_list_axis_keeps_order_and_none() -> None:
    assert parse_grid(["exit_threshold=0.2,none,0.1"]) == {"exit_threshold": [0.2, None, 0.1]}


def test_a_range_axis_has_both_ends_and_round_values() -> None:
    axis = parse_grid(["tp1_pct=0.1:1.0:10"])["tp1_pct"]
    assert axis == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_grid(["sl_pct=0.3:0.9:1"]) == {"sl_pct": [0.3]}


@pytest.mark.parametrize(
    "text", ["tp1_pct", "=3", "tp1_pct=0.1:1.0", "tp1_pct=0.1:1:0", "tp1_pct=a:b:3", "tp1_pct=1:2:3:4"]
)
def test_a_wrong_axis_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        parse_grid([text])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="sl_pct: given twice"):
        parse_params(["sl_pct=1", "sl_pct=2"])


def test_a_misspelt_name_gets_the_closest() -> None:
    with pytest.raises(ConfigError, match="entry_threshold"):
        trading_params(["entry_treshold=0.7"])
