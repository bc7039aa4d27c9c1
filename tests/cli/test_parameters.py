"""Options of the command line become the values that they name."""

from __future__ import annotations

import pytest

from replaylab.cli.terminal import parse_grid, parse_params
from replaylab.errors import ConfigError
from replaylab.params import TradingParams


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0.7", 0.7),
        ("3", 3),
        ("none", None),
        ("None", None),
        ("true", True),
        ("false", False),
        ("TREND", "TREND"),
        ("TREND+RANGE", ("TREND", "RANGE")),
        ("", ()),
        ("-0.5", -0.5),
        ("1e-3", 0.001),
    ],
)
def test_a_value(written: str, value: object) -> None:
    assert parse_params([f"x={written}"]) == {"x": value}


def test_options_are_changes_to_parameters() -> None:
    """A list of names also where it holds one; a choice is a string."""
    changes = parse_params(["entry_threshold=0.7", "allowed_regimes=TREND", "market_fill=print"])
    params = TradingParams(sl_pct=0.2).with_changes(changes)
    assert (params.entry_threshold, params.sl_pct, params.market_fill) == (0.7, 0.2, "print")
    assert params.allowed_regimes == ("TREND",)
    assert parse_params(None) == {}


def test_a_list_axis_keeps_order_and_none() -> None:
    assert parse_grid(["exit_threshold=0.2,none,0.1"]) == {"exit_threshold": [0.2, None, 0.1]}


def test_a_range_axis_has_both_ends_and_round_values() -> None:
    axis = parse_grid(["tp1_pct=0.1:1.0:10"])["tp1_pct"]
    assert axis == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_grid(["sl_pct=0.3:0.9:1"]) == {"sl_pct": [0.3]}


@pytest.mark.parametrize(
    "axis", ["tp1_pct", "=3", "tp1_pct=0.1:1.0", "tp1_pct=0.1:1:0", "tp1_pct=a:b:3", "tp1_pct=1:2:3:4"]
)
def test_a_wrong_axis_is_refused(axis: str) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        parse_grid([axis])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="sl_pct: given twice"):
        parse_params(["sl_pct=1", "sl_pct=2"])
