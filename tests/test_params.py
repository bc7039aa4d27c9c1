"""Parameters: checked when made, named when wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replaylab.errors import ConfigError
from replaylab.params import ScoringParams, TradingParams, contradictions, markdown_table, resolve_params

NUMBERS = [declared.name for declared in TradingParams.declarations() if declared.kind in ("number", "whole")]


def test_defaults_are_valid_and_round_trip_in_both_spellings():
    params = TradingParams()
    plain = params.to_dict()
    assert "slPct" in plain
    assert TradingParams.from_dict(plain) == params
    assert TradingParams.from_dict({"sl_pct": 0.5}) == TradingParams.from_dict({"slPct": 0.5})
    assert ScoringParams.from_dict(ScoringParams().to_dict()) == ScoringParams()


def test_an_unknown_parameter_is_refused_with_the_closest_one():
    with pytest.raises(ConfigError, match="Did you mean 'entry_threshold'") as caught:
        TradingParams.from_dict({"entry_treshold": 0.5})
    assert caught.value.field == "entry_treshold"
    with pytest.raises(ConfigError, match="sl_pct"):
        TradingParams().replace(slpct=0.5)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, "0.5", True, [1], object()])
def test_every_number_refuses_what_is_no_finite_number(name, bad):
    with pytest.raises(ConfigError) as caught:
        TradingParams(**{name: bad})
    assert caught.value.field == name
    assert f"TradingParams.{name}: expected " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "bad", "bound"),
    [
        ("entry_threshold", -0.1, "≥ 0"),
        ("tp1_fraction", 1.1, "≤ 1"),
        ("slippage_bps", 10_000, "< 10000"),
        ("leverage", 0, "> 0"),
        ("notional_usd", 0, "> 0"),
        ("max_open_positions", 1.5, "a whole number"),
        ("max_trades_per_day", -1, "≥ 0"),
        ("max_daily_loss_usd", 0, "> 0"),
        ("latency_ms", -1, "≥ 0"),
        ("tp2_pct", 0.1, "tp1_pct"),
        ("allowed_regimes", "CALM", "a list of names"),
        ("allow_long", 1, "True or False"),
        ("sl_pct", 100, "≥ 0 and < 100"),
        ("taker_fee_bps", -100.5, "≥ -100"),
        ("entry_offset_bps", 10_000, "< 10000"),
        ("queue_share", 1.01, "≤ 1"),
        ("entry_ttl_s", 0, "> 0 and ≤ 1e+09 or None"),
        ("max_book_age_s", 0, "> 0"),
        ("max_gap_s", 0, "> 0"),
        ("stop_latency_ms", -1, "≥ 0"),
        ("market_fill", "best", '"auto" or "print" or "quote" or "book"'),
        ("rounding", None, '"exchange" or "none"'),
    ],
)
def test_a_parameter_out_of_bounds_names_its_bound(name, bad, bound):
    with pytest.raises(ConfigError) as caught:
        TradingParams(**{name: bad})
    assert caught.value.field == name
    assert bound in str(caught.value)
    assert repr(bad) in str(caught.value)


def test_values_from_numpy_grids_become_plain_numbers():
    params = TradingParams(sl_pct=np.float32(0.5), max_open_positions=np.int64(3), allow_long=np.bool_(False))
    assert (params.sl_pct, params.max_open_positions, params.allow_long) == (0.5, 3, False)
    kinds: list[Any] = [type(params.sl_pct), type(params.max_open_positions), type(params.allow_long)]
    assert kinds == [float, int, bool]


def test_parameters_are_immutable_and_replace_makes_a_checked_copy():
    params = TradingParams()
    with pytest.raises(AttributeError):
        params.sl_pct = 1.0
    assert params.replace(sl_pct=1).sl_pct == 1.0
    assert params.sl_pct == TradingParams().sl_pct
    with pytest.raises(ConfigError):
        params.replace(sl_pct=-1)


def test_an_argument_may_be_settings_a_dict_or_nothing():
    params = TradingParams(sl_pct=0.5)
    assert TradingParams.of(params, "params") is params
    assert TradingParams.of({"slPct": 0.5}, "params") == params
    assert TradingParams.of(None, "params") == TradingParams()
    for wrong in (5, "sl_pct", [("sl_pct", 0.5)], ScoringParams()):
        with pytest.raises(
            ConfigError, match=r"^params: expected TradingParams, a dict of changes or None"
        ) as caught:
            TradingParams.of(wrong, "params")
        assert caught.value.field == "params"


class Recorded:
    """A session that recorded its parameters, or none."""

    def __init__(self, params: TradingParams | None) -> None:
        self.recorded_params = params


def test_recorded_parameters_come_before_the_configured_ones() -> None:
    """None runs what the session recorded; where it recorded nothing, the default of the caller."""
    recorded, config = TradingParams(sl_pct=0.7), TradingParams(sl_pct=0.9)
    assert resolve_params(None, Recorded(recorded), config) == (recorded, "recorded", {})
    assert resolve_params(None, Recorded(None), config) == (config, "config", {})
    assert resolve_params(None) == (TradingParams(), "config", {})


def test_a_dict_changes_the_base_and_an_instance_replaces_it() -> None:
    """Changes name both values, whichever spelling of the field was given."""
    recorded = TradingParams(sl_pct=0.7, tp1_pct=0.2)
    changed = resolve_params({"slPct": 0.5}, Recorded(recorded))
    assert changed == (recorded.replace(sl_pct=0.5), "recorded", {"sl_pct": (0.7, 0.5)})
    assert changed.describe() == "recorded parameters, sl_pct 0.7 → 0.5"
    whole = resolve_params(TradingParams(tp1_pct=0.2), Recorded(recorded))
    assert whole == (TradingParams(tp1_pct=0.2), "given", {"sl_pct": (0.7, 0.3)})
    with pytest.raises(ConfigError, match="dict of changes or None, found int"):
        resolve_params(3)  # type: ignore[arg-type]


def test_parameters_that_contradict_each_other_are_refused_with_both_values():
    with pytest.raises(
        ConfigError, match=r"tp2_pct < tp1_pct is not allowed, found tp2_pct=0.1, tp1_pct=0.3"
    ):
        TradingParams(tp2_pct=0.1)
    with pytest.raises(ConfigError, match="limit_fill") as caught:
        TradingParams(limit_fill="queue", rounding="none")
    assert caught.value.field == "limit_fill"


def test_contradictions_work_on_the_columns_of_a_grid():
    columns = {"tp1_pct": np.array([0.1, 0.3]), "tp2_pct": 0.2, "limit_fill": "queue", "rounding": "exchange"}
    found = contradictions(columns)
    assert found["tp2_pct < tp1_pct"][1].tolist() == [False, True]
    columns |= {"rounding": np.array(["exchange", "none"])}
    assert [wrong for _, wrong in contradictions(columns).values()][1].tolist() == [False, True]


def test_a_dict_is_a_set_of_changes_to_the_base():
    base = TradingParams(sl_pct=0.5, cooldown_s=3)
    used = TradingParams.of({"slPct": 0.7}, "params", base=base)
    assert used == TradingParams(sl_pct=0.7, cooldown_s=3)
    assert used.changes(base) == {"sl_pct": (0.5, 0.7)}
    assert TradingParams.of(None, "params", base=base) is base
    assert base.changes(base) == {}
    with pytest.raises(ConfigError, match="TradingParams has no setting 'slpc'"):
        base.with_changes({"slpc": 1})


def test_every_declaration_is_complete():
    """Each field has a help sentence, a default that it allows, and None only where its kind says so."""
    for kind in (TradingParams, ScoringParams):
        for declared in kind.declarations():
            assert declared.help.endswith("."), declared.name
            assert declared.check(declared.default) == declared.default
            if not declared.optional:
                with pytest.raises(ConfigError):
                    kind(**{declared.name: None})
    units = {declared.name: declared.unit for declared in TradingParams.declarations()}
    assert (units["sl_pct"], units["slippage_bps"], units["cooldown_s"]) == ("%", "bps", "s")
    assert (units["latency_ms"], units["notional_usd"], units["entry_threshold"]) == ("ms", "USD", "")


def test_the_packed_form_holds_every_value_and_marks_what_is_off():
    packed = TradingParams(cooldown_s=1.5, latency_ms=0.5, max_trades_per_day=10**30).pack()
    assert packed.dtype == TradingParams.packed_dtype()
    assert (packed["cooldown_ns"], packed["latency_ns"]) == (1_500_000_000, 500_000)
    assert (packed["max_hold_ns"], packed["max_open_positions"], packed["allowed_regimes_set"]) == (
        -1,
        -1,
        -1,
    )
    assert math.isnan(packed["exit_threshold"])
    assert math.isnan(packed["slippage_bps"])
    assert packed["max_trades_per_day"] == 2**62
    assert (packed["market_fill"], packed["limit_fill"], packed["entry_order"]) == (0, 1, 0)
    assert packed["max_gap_ns"] == 900 * 10**9
    assert bool(packed["allow_long"])


def test_a_print_fill_slips_by_one_basis_point_where_nothing_else_is_given():
    assert TradingParams().slippage_bps is None
    assert TradingParams().print_slippage_bps == 1.0
    assert TradingParams(slippage_bps=0).print_slippage_bps == 0.0


def test_the_model_page_shows_the_declared_parameters():
    page = (Path(__file__).parent.parent / "docs" / "model.md").read_text()
    assert markdown_table(TradingParams) in page
