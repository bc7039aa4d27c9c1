"""Labels against a plain loop, the trading model and prefixes of a session; horizons, scans and weights by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import DatasetError, PriceError
from replaylab.ml import labelling
from replaylab.ml.labelling import (
    average_uniqueness,
    barrier_scan,
    fixed_horizon,
    labels,
    mark_outs,
    meta_labels,
    return_weights,
)
from replaylab.params import TradingParams
from tests import oracle
from tests.ml.sessions import SECOND, START, FakeSession, random_rows, score, session, trade
from tests.strategies import VERSION_1


def slow(
    data: FakeSession,
    tp: float | None,
    sl: float | None,
    hold: float | None,
    side: str,
    gap: float | None = None,
) -> list[dict[str, Any]]:
    """One decision after the other, one price after the other: the explanation of the fast one."""
    events = [
        (ts, kind, symbol, orjson.loads(payload))
        for ts, kind, symbol, payload in zip(
            data.events["timestamp"].dt.timestamp("ns"),
            *(data.events[c] for c in ("type", "symbol", "payload")),
            strict=True,
        )
    ]
    found = []
    for k, (_, kind, symbol, payload) in enumerate(events):
        if kind != "SCORING_UPDATE":
            continue
        direction = {"long": 1, "short": -1, "score": int(np.sign(payload["score"]))}[side]
        prices = [
            (t, i, p["price"]) for i, (t, n, s, p) in enumerate(events) if n == "MARKET_TRADE" and s == symbol
        ]
        later = [row for row in prices if row[1] > k]
        row: dict[str, Any] = {"event_index": k, "label": None, "ret": None, "t_end": None, "barrier": None}
        row["hole"] = False
        if later and direction:
            entry_ts, entry_index, entry = later[0]
            before = [row[0] for row in prices if row[1] < k]
            last = before[-1] if before else entry_ts
            for t, i, p in prices:
                if i < entry_index:
                    continue
                if gap is not None and t - last > gap * 1e9:
                    row["hole"] = True
                    break
                last = t
                if i == entry_index:
                    continue
                barrier = None
                if sl is not None and direction * (p - entry * (1 - direction * sl / 100)) <= 0:
                    barrier, label = "SL", -1
                elif tp is not None and direction * (p - entry * (1 + direction * tp / 100)) >= 0:
                    barrier, label = "TP", 1
                elif hold is not None and t - entry_ts >= hold * 1e9:
                    barrier, label = "TIME", 0
                if barrier:
                    row |= {
                        "label": label,
                        "barrier": barrier,
                        "t_end": t,
                        "ret": direction * (p - entry) / entry,
                    }
                    break
        found.append(row)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(5, 120),
    st.sampled_from(["long", "short", "score"]),
    st.sampled_from([0.0, 0.05, 0.1, 0.25, None]),
    st.sampled_from([0.0, 0.05, 0.1, 0.25, None]),
    st.sampled_from([0.0, 0.25, 2.0, 10.0, None]),
    st.sampled_from([0.25, 0.9, 2.0, 900.0, None]),
)
def test_labels_equal_the_plain_loop(
    seed: int,
    count: int,
    side: str,
    tp: float | None,
    sl: float | None,
    hold: float | None,
    gap: float | None,
) -> None:
    data = session([*random_rows(seed, count, ("BTCUSDT", "ETHUSDT")), trade(START + 10**12, 100.0)])
    found = labels(data, tp, sl, hold, side=side, price_source="trade", max_gap_s=gap)
    wanted = slow(data, tp, sl, hold, side, gap)
    assert found["event_index"].to_list() == [row["event_index"] for row in wanted]
    for name in ("label", "barrier", "ret", "hole"):
        assert found[name].to_list() == [row[name] for row in wanted], name
    assert found["t_end"].dt.timestamp("ns").to_list() == [row["t_end"] for row in wanted]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(20, 120), st.data())
def test_many_settings_at_once_are_each_alone(seed: int, count: int, data: st.DataObject) -> None:
    """Shared searches change nothing: each setting's rows are those of a call with it alone."""
    events = session(random_rows(seed, count))
    tp = data.draw(st.lists(st.sampled_from([0.05, 0.1, 0.3, None]), min_size=1, max_size=3))
    sl = data.draw(st.lists(st.sampled_from([0.05, 0.2, None]), min_size=1, max_size=2))
    hold = data.draw(st.lists(st.sampled_from([0.5, 5.0, None]), min_size=1, max_size=3, unique=True))
    together = labels(events, tp, sl, hold, side="score", weights=False)
    alone = [labels(events, a, b, c, side="score", weights=False) for a in tp for b in sl for c in hold]
    count = len(alone)
    assert together.height == count * alone[0].height
    for number, one in enumerate(alone):
        assert together.gather_every(count, number).equals(one, null_equal=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(20, 100), st.data())
def test_a_label_of_a_prefix_never_changes(seed: int, count: int, data: st.DataObject) -> None:
    """What is decided within a prefix does not change when events follow; what is not is null there."""
    whole = session(random_rows(seed, count))
    cut = data.draw(st.integers(1, count))
    full = labels(whole, 0.1, 0.1, 3.0, price_source="trade", weights=False)
    part = labels(whole.prefix(cut), 0.1, 0.1, 3.0, price_source="trade", weights=False)
    decided = part.drop_nulls("label")
    assert decided.equals(full.head(part.height).filter(part["label"].is_not_null()))
    ends = full.head(part.height).filter(part["label"].is_null())["t_end"].dt.timestamp("ns")
    last = int(part["t_start"].dt.timestamp("ns").max() or 0) if part.height else 0
    assert all(end is None or end >= last for end in ends)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.sampled_from([0.0, 0.05, 0.2]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([0.0, 300.0]),
    st.sampled_from([None, 0.9, 2.5]),
)
def test_with_costs_a_label_is_the_trade_that_the_model_makes(
    seed: int, tp: float, sl: float, hold: float | None, latency: float, gap: float | None
) -> None:
    """For every trade of the slow model with one target: same end, same barrier, return = PnL on the notional.

    A trade that ends at a hole has no label.
    """
    rows = random_rows(seed, 150)
    params = TradingParams(
        entry_threshold=0.1,
        tp1_fraction=0.0,
        tp1_pct=0.0,
        tp2_pct=tp,
        sl_pct=sl,
        max_hold_s=hold,
        latency_ms=latency,
        slippage_bps=2.0,
        **{**VERSION_1, "max_gap_s": gap},
    )
    model = oracle.run(rows, params, price_source="trade")
    frame = labels(
        session(rows), tp, sl, hold, side="score", costs=params, price_source="trade", max_gap_s=gap
    )
    names = {"TP2": "TP", "STOP_LOSS": "SL", "TIMEOUT": "TIME"}
    for made in model.trades:
        same = frame.filter(pl.col("entry_time").dt.timestamp("ns") == made["entry_ts"])
        same = same.filter(pl.col("side") == (1 if made["side"] == "LONG" else -1))
        same = same.filter((pl.col("entry_price") - made["entry_price"]).abs() < 1e-9)
        if made["reason"] == "SESSION_END":
            assert same["label"].null_count() > 0
            continue
        if made["reason"] == "DATA_GAP":
            assert same["hole"].any()
            continue
        ret = made["realized_pnl"] / (made["entry_price"] * made["qty"])
        hits = same.filter((pl.col("ret") - ret).abs() < 1e-12)
        assert hits.height
        assert hits["barrier"][0] == names[made["reason"]]
        assert hits["t_end"].dt.timestamp("ns")[0] == made["exit_ts"]


def test_hand_worked_labels() -> None:
    """Entry 100 after the decision. +0.2 % at 2 s: target. With a tighter target of 0.1 % at 1 s. Time at 5 s."""
    rows = [score(START, 0.5)] + [
        trade(START + s * SECOND, p) for s, p in ((0, 100.0), (1, 100.1), (2, 100.2), (5, 99.9), (9, 99.8))
    ]
    found = labels(session(rows), [0.1, 0.2, 1.0], 0.15, [5.0])
    assert found["barrier"].to_list() == ["TP", "TP", "TIME"]
    assert found["label"].to_list() == [1, 1, 0]
    assert [(t - START) // SECOND for t in found["t_end"].dt.timestamp("ns")] == [1, 2, 5]
    assert found["ret"].to_list() == pytest.approx([0.001, 0.002, -0.001])
    assert labels(session(rows), 1.0, 1.0, 5.0, time_label="sign")["label"].to_list() == [-1]


def test_costs_of_a_hand_worked_label() -> None:
    """No slippage: a target of 1 % pays 5 + 2·1.01 bps; a stop at 98 pays 5 + 5·0.98 bps."""
    params = TradingParams(taker_fee_bps=5, maker_fee_bps=2, slippage_bps=0)
    up = session([score(START, 1.0), trade(START, 100.0), trade(START + SECOND, 103.0)])
    assert labels(up, 1.0, 1.0, costs=params)["ret"][0] == pytest.approx(0.01 - 5e-4 - 2e-4 * 1.01)
    down = session([score(START, 1.0), trade(START, 100.0), trade(START + SECOND, 98.0)])
    assert labels(down, 1.0, 1.0, costs=params)["ret"][0] == pytest.approx(-0.02 - 5e-4 - 5e-4 * 0.98)


def test_what_needs_data_after_the_end_is_null() -> None:
    rows = [score(START, 0.5), trade(START, 100.0), trade(START + SECOND, 100.0), score(START + SECOND, 0.5)]
    found = labels(session(rows))
    assert found["label"].to_list() == [None, None]
    assert found["t_end"].null_count() == 2
    assert found["entry_time"].null_count() == 1
    assert found["uniqueness"].null_count() == 2


def test_a_decision_at_a_shared_timestamp_enters_behind_itself() -> None:
    """The session's order breaks the tie: the trade before the score is known, the one after it is the entry."""
    rows = [trade(START, 100.0), score(START, 0.5), trade(START, 101.0), trade(START + SECOND, 102.0)]
    assert labels(session(rows), 0.5, 0.5)["entry_price"].to_list() == [101.0]


def test_decision_times_of_a_frame() -> None:
    """Without event_index only what lies strictly before is known, so a trade of the same time is the entry."""
    rows = [trade(START, 100.0), trade(START + SECOND, 101.0), trade(START + 2 * SECOND, 102.0)]
    at = pl.DataFrame({"timestamp": [START + SECOND], "symbol": ["BTCUSDT"]}).with_columns(
        pl.col("timestamp").cast(pl.Datetime("ns", "UTC"))
    )
    data = session(rows)
    assert labels(data, 0.5, 0.5, at=at)["entry_price"].to_list() == [101.0]
    assert labels(data, 0.5, 0.5, at=at.with_columns(event_index=1))["entry_price"].to_list() == [102.0]
    with pytest.raises(DatasetError, match="of this session"):
        labels(data, at=at.with_columns(event_index=2))


def test_the_side_of_the_score_and_its_absence() -> None:
    rows = [
        score(START, -0.5),
        score(START, 0.0),
        (START, "SCORING_UPDATE", "BTCUSDT", {"score": 0.5, "side": "SHORT"}),
    ]
    rows += [trade(START, 100.0), trade(START + SECOND, 99.0)]
    found = labels(session(rows), 0.5, 0.5, side="score")
    assert found["side"].to_list() == [-1, 0, -1]
    assert found["label"].to_list() == [1, None, 1]
    assert found["ret"][0] == pytest.approx(0.01)


def test_weights_are_per_symbol() -> None:
    """Two labels at the same time on two symbols do not share prices."""
    rows = []
    for name in ("AIUSDT", "BTCUSDT"):
        rows += [score(START, 1.0, name), trade(START, 100.0, name)]
    rows += [trade(START + SECOND, 101.0, "AIUSDT"), trade(START + SECOND, 99.0, "BTCUSDT")]
    found = labels(session(rows), 0.5, 0.5)
    assert found["uniqueness"].to_list() == [1.0, 1.0]
    assert found["label"].to_list() == [1, -1]


def test_no_decisions_and_no_prices() -> None:
    assert labels(session([trade(START, 1.0)])).height == 0
    found = labels(session([score(START, 1.0)]))
    assert found["label"].to_list() == [None]
    assert math.isclose(found["tp_pct"][0], 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "both"}, "side: expected one of"),
        ({"tp_pct": -1.0}, "tp_pct"),
        ({"tp_pct": float("nan")}, "tp_pct"),
        ({"at": "minutes"}, "'scoring' or a frame"),
        ({"price_source": "trades"}, "Did you mean 'trade'"),
        ({"time_label": "none"}, "time_label"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((DatasetError, PriceError), match=message):
        labels(session([score(START, 1.0)]), **options)


RECORD = {
    "side": "SHORT",
    "entryPrice": 100.0,
    "closePrice": 99.0,
    "qty": 2.0,
    "realizedPnl": 1.5,
    "durationSeconds": 3.0,
}


def test_hand_worked_horizons() -> None:
    """Entry 100 at 1 s; at 2 s still 100, at 5 s 102. The session ends at 9 s, so that 9 s is not covered."""
    rows = [
        score(START, 0.5),
        *(trade(START + s * SECOND, p) for s, p in ((1, 100.0), (4, 102.0), (9, 103.0))),
    ]
    found = fixed_horizon(session(rows), [0.5, 2, 5, 9])
    assert found.select("ret_0.5s", "ret_2s", "ret_5s", "ret_9s").row(0) == (
        None,
        0.0,
        pytest.approx(0.02),
        None,
    )
    assert found["t_end_2s"].dt.timestamp("ns").to_list() == [START + 2 * SECOND]
    assert found["t_end_9s"].to_list() == [None]
    assert fixed_horizon(session(rows), [5], side="short")["ret_5s"][0] == pytest.approx(-0.02)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(5, 100), st.sampled_from([None, 0.25, 0.9, 900.0]))
def test_horizons_equal_the_plain_loop(seed: int, count: int, gap: float | None) -> None:
    rows = random_rows(seed, count)
    rows.append(score(rows[-1][0], 0.5))
    found = fixed_horizon(session(rows), [1.0], price_source="trade", max_gap_s=gap)["ret_1s"].to_list()
    wanted = []
    for k, (ts, kind, _, _) in enumerate(rows):
        if kind != "SCORING_UPDATE":
            continue
        prints = [(i, t, p["price"]) for i, (t, n, _, p) in enumerate(rows) if n == "MARKET_TRADE"]
        inside = [price for i, t, price in prints if i > k and t <= ts + SECOND]
        covered = ts + SECOND < rows[-1][0]
        if gap is not None:
            covered = any(t > ts + SECOND for _, t, _ in prints)
            # A hole that begins before the horizon and ends after the decision.
            for (_, a, _), (i, b, _) in pairwise(prints):
                covered = covered and not (b - a > gap * 1e9 and i > k and a <= ts + SECOND)
        wanted.append(inside[-1] / inside[0] - 1 if inside and covered else None)
    assert found == wanted


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(5, 100),
    st.sampled_from([None, 0.25, 0.9, 900.0]),
    st.booleans(),
    st.data(),
)
def test_mark_outs_equal_the_plain_loop(
    seed: int, count: int, gap: float | None, indexed: bool, data: st.DataObject
) -> None:
    """The last price of [fill, fill + horizon]: none from before the fill, none behind a hole."""
    rows = random_rows(seed, count)
    prints = [(i, t, p["price"]) for i, (t, n, _, p) in enumerate(rows) if n == "MARKET_TRADE"]
    if not prints:
        return
    fills = data.draw(
        st.lists(st.tuples(st.sampled_from(prints), st.sampled_from([-100, 0, 100])), min_size=1)
    )
    # An index belongs to a fill at a price event alone; a live fill comes at any time.
    moments = [t + (0 if indexed else ms * 1_000_000) for (_, t, _), ms in fills]
    trades = pl.DataFrame(
        {
            "symbol": ["BTCUSDT"] * len(fills),
            "side": ["LONG"] * len(fills),
            "entry_price": [100.0] * len(fills),
            "entry_time": pl.Series(moments).cast(pl.Datetime("ns", "UTC")),
            "exit_time": pl.Series(moments).cast(pl.Datetime("ns", "UTC")),
        }
    )
    if indexed:
        trades = trades.with_columns(entry_index=pl.Series([i for (i, _, _), _ in fills]))
    found = mark_outs(session(rows), trades, [1.0], price_source="trade", max_gap_s=gap)[
        "mark_out_1s"
    ].to_list()
    wanted = []
    for moment, ((index, _, _), _) in zip(moments, fills, strict=True):
        inside = [
            price for i, t, price in prints if moment <= t <= moment + SECOND and not (indexed and i < index)
        ]
        covered = moment + SECOND < rows[-1][0]
        if gap is not None:
            covered = any(t > moment + SECOND for _, t, _ in prints)
            for (_, a, _), (i, b, _) in pairwise(prints):
                after = i > index if indexed else b > moment
                covered = covered and not (b - a > gap * 1e9 and after and a <= moment + SECOND)
        wanted.append(pytest.approx((inside[-1] / 100.0 - 1.0) * 1e4) if inside and covered else None)
    assert found == wanted


def test_a_mark_out_takes_no_price_from_before_the_fill() -> None:
    """LONG at 100.5 half a second after the print at 100; the next print, 101, comes a second after the fill."""
    rows = [trade(START, 100.0), trade(START + 3 * SECOND // 2, 101.0), trade(START + 9 * SECOND, 101.0)]
    at = pl.Series([START + SECOND // 2]).cast(pl.Datetime("ns", "UTC"))
    fill = pl.DataFrame(
        {"symbol": "BTCUSDT", "side": "LONG", "entry_price": 100.5, "entry_time": at, "exit_time": at}
    )
    found = mark_outs(session(rows), fill, [0.5, 1])
    assert found["mark_out_0.5s"].to_list() == [None]
    assert found["mark_out_1s"].to_list() == pytest.approx([(101.0 / 100.5 - 1.0) * 1e4])


def test_labels_and_scans_count_what_a_hole_takes() -> None:
    """Prices at 0, 1 and 2,000 s: a pause of 1,999 s. The time barrier of 60 s would be decided behind it."""
    rows = [score(START, 0.5)] + [trade(START + s * SECOND, 100.0) for s in (0, 1, 2000, 2100)]
    rows.append(score(START + 2100 * SECOND, 0.5))
    found = labels(session(rows))
    assert found.select("label", "hole").rows() == [(None, True), (None, False)]
    assert labels(session(rows), max_gap_s=None)["barrier"].to_list() == ["TIME", None]
    assert labels(session(rows), max_gap_s=1999.0)["hole"].to_list() == [False, False]
    table = barrier_scan(session(rows), [0.2, 0.3], 0.15, 60.0)
    assert table.select("n", "unknown", "holes").rows() == [(0, 2, 1)] * 2
    with pytest.raises(DatasetError, match="max_gap_s: expected seconds above 0"):
        labels(session(rows), max_gap_s=0.0)


def test_mark_outs_are_signed_by_the_side_and_in_basis_points() -> None:
    rows = [trade(START + s * SECOND, p) for s, p in ((0, 100.0), (1, 101.0), (9, 100.0))]
    trades = pl.DataFrame(
        {
            "symbol": ["BTCUSDT"] * 2,
            "side": ["LONG", "SHORT"],
            "entry_price": [100.0, 100.0],
            "timestamp": [START + 3 * SECOND] * 2,
            "duration_seconds": [3.0, 3.0],
        }
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
    found = mark_outs(session(rows), trades, [1, 30])
    assert found["mark_out_1s"].to_list() == pytest.approx([100.0, -100.0])
    assert found["mark_out_30s"].to_list() == [None, None]


def test_meta_labels_of_logged_trades() -> None:
    """PnL 1.5 on a notional of 200 that took 3 s; the session's own EXECUTION_TRADE events."""
    rows = [(START + 10 * SECOND, "EXECUTION_TRADE", "BTCUSDT", RECORD)]
    found = meta_labels(session(rows))
    assert found.select("side", "ret", "label").row(0) == (-1, 0.0075, 1)
    assert found["t_start"].dt.timestamp("ns")[0] == START + 7 * SECOND
    ended = [(START + 10 * SECOND, "EXECUTION_TRADE", "BTCUSDT", {**RECORD, "reason": "DATA_GAP"})]
    assert meta_labels(session(ended)).select("ret", "label").row(0) == (None, None)
    with pytest.raises(DatasetError, match="EXECUTION_\\*"):
        meta_labels(session([score(START, 1.0)]))


def test_a_horizon_is_above_zero() -> None:
    with pytest.raises(DatasetError, match="above zero"):
        fixed_horizon(session([score(START, 1.0)]), [0])
    with pytest.raises(DatasetError, match="no decision times"):
        fixed_horizon(session([trade(START, 1.0)]))


@pytest.mark.parametrize("cells", [10, 10**6])
@pytest.mark.parametrize("side", ["long", "score"])
def test_each_row_sums_up_the_labels_of_its_setting(
    cells: int, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many settings are searched at once."""
    monkeypatch.setattr(labelling, "_CELLS", cells)
    data = session(random_rows(9, 600, ("BTCUSDT", "ETHUSDT")))
    options = {"side": side, "costs": TradingParams(latency_ms=100)}
    levels = ([0.1, 0.3], [0.1, None], [2.0, None])
    table = barrier_scan(data, *levels, **options)
    rows = labels(data, *levels, **options)
    seconds = (pl.col("t_end") - pl.col("entry_time")).dt.total_nanoseconds() / 1e9
    decided = rows.drop_nulls("label")
    wanted = decided.group_by("tp_pct", "sl_pct", "max_hold_s").agg(
        n=pl.len(),
        n_tp=(pl.col("barrier") == "TP").sum(),
        n_sl=(pl.col("barrier") == "SL").sum(),
        n_time=(pl.col("barrier") == "TIME").sum(),
        mean_ret=pl.col("ret").mean(),
        std_ret=pl.col("ret").std(),
        mean_s=seconds.mean(),
    )
    assert table.height == 8
    proposed = rows.filter(pl.col("side") != 0).height // 8
    assert (table["n"] + table["unknown"]).to_list() == [proposed] * 8
    joined = table.join(wanted, on=["tp_pct", "sl_pct", "max_hold_s"], nulls_equal=True, suffix="_wanted")
    assert joined.height == 8
    for name in wanted.columns[3:]:
        assert joined[name].to_list() == pytest.approx(joined[f"{name}_wanted"].to_list(), abs=1e-9), name


def test_nothing_to_label() -> None:
    table = barrier_scan(session([score(START, 0.5)]), [0.1, 0.2], 0.1, 1.0)
    assert table["n"].to_list() == [0, 0]
    assert table["unknown"].to_list() == [1, 1]
    assert table["mean_ret"].to_list() == [None, None]


def test_more_rows_than_a_frame_can_bear_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "_MOST_ROWS", 10)
    with pytest.raises(DatasetError, match="barrier_scan"):
        labels(session(random_rows(1, 100)), [0.1, 0.2, 0.3])


intervals = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=15)


def test_uniqueness_of_hand_worked_labels() -> None:
    """[0, 4] and [2, 6] share two of their four units each: (2·1 + 2·½)/4. [10, 12] stands alone."""
    np.testing.assert_allclose(average_uniqueness([0, 2, 10], [4, 6, 12]), [0.75, 0.75, 1.0])
    np.testing.assert_allclose(average_uniqueness([0, 0, 0], [5, 5, 5]), [1 / 3] * 3)


@given(intervals)
def test_uniqueness_equals_brute_force(rows: list[tuple[int, int]]) -> None:
    """Average of 1/c over every unit of time; times are whole, so units are exact."""
    start = np.array([row[0] for row in rows])
    end = start + np.array([row[1] for row in rows])
    wanted = []
    for a, b in zip(start, end, strict=True):
        if a == b:
            wanted.append(1 / sum(s <= a <= e for s, e in zip(start, end, strict=True)))
            continue
        units = [1 / sum(s <= t < e for s, e in zip(start, end, strict=True)) for t in range(a, b)]
        wanted.append(sum(units) / len(units))
    np.testing.assert_allclose(average_uniqueness(start, end), wanted)


@given(intervals)
def test_return_weights_equal_brute_force(rows: list[tuple[int, int]]) -> None:
    start = np.array([row[0] for row in rows])
    end = start + np.array([row[1] for row in rows])
    when = np.arange(0, 30)
    price = 100 * np.exp(np.sin(when))
    wanted = []
    for a, b in zip(start, end, strict=True):
        total = 0.0
        for k in range(1, 30):
            if a < when[k] <= b:
                count = sum(s < when[k] <= e for s, e in zip(start, end, strict=True))
                total += math.log(price[k] / price[k - 1]) / count
        wanted.append(abs(total))
    mean = sum(wanted) / len(wanted)
    wanted = [w / mean for w in wanted] if mean > 0 else [1.0] * len(wanted)
    np.testing.assert_allclose(return_weights(start, end, when, price), wanted, atol=1e-9)


def test_standing_prices_weigh_all_the_same() -> None:
    assert return_weights([0, 1], [2, 3], [0, 1, 2, 3], [5.0] * 4).tolist() == [1.0, 1.0]


def test_prices_out_of_order_are_refused() -> None:
    with pytest.raises(DatasetError, match="must ascend"):
        return_weights([0], [2], [1, 0], [5.0, 5.0])
