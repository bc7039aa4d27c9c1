"""Carried positions and the account's day, from the order log and the trade log."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab import Lab, frames
from replaylab.features import InitialState
from replaylab.history import write_funding
from replaylab.paths import DataRoot
from replaylab.sessions import SessionStore, build_replay_session, initial_state
from replaylab.timestamps import date_key, iso, parse_ns
from tests.cuts import simulate
from tests.sessions.logs import append, log_events, order_record, state_event, trade_record

SAMPLE = Path(__file__).parents[2] / "data"
DAY = "2025-11-18"
Write = Callable[..., Path]


def at(clock: str, day: str = DAY) -> str:
    return f"{day}T{clock}.000Z"


def order(clock: str, order_id: str, status: str, **fields: Any) -> dict[str, Any]:
    """A line of the order log; ``fields`` in snake_case."""
    names = {"reduce": "reduceOnly", "filled": "filledQty", "average": "avgFillPrice", "kind": "type"}
    record = order_record(at(clock, fields.pop("day", DAY)), status=status) | {"clientOrderId": order_id}
    return record | {names.get(name, name): value for name, value in fields.items()}


def trade(clock: str, entered: str, pnl: float, **fields: Any) -> dict[str, Any]:
    day = fields.pop("day", DAY)
    entry_day = fields.pop("entry_day", day)
    return trade_record(at(clock, day), pnl=pnl) | {"entryTimestamp": at(entered, entry_day)} | fields


def root_of(tmp_path: Path, orders: list[Any], trades: list[Any], *, taker: float | None = 10.0) -> DataRoot:
    for record in orders:
        append(tmp_path / "orders" / f"day-{record['timestamp'][:10]}.jsonl", record)
    for record in trades:
        append(tmp_path / "trades_log" / f"day-{record['timestamp'][:10]}.jsonl", record)
    if taker is not None:
        params = {"takerFeeBps": taker, "makerFeeBps": 0.0}
        append(tmp_path / "system" / "trading_params.jsonl", {"timestamp": at("00:00:00"), "params": params})
    return DataRoot(tmp_path)


def start_of(root: DataRoot, clock: str, *symbols: str, day: str = DAY) -> dict[str, Any]:
    return initial_state(root, parse_ns(at(clock, day)), symbols or ("BTCUSDT",))


# A LONG of 2 at 100, decided 10:00:00, filled 10:00:10, TP1 of 1 at 101, the rest stopped at 99.
LONG = [
    order("10:00:00", "e", "NEW"),
    order("10:00:10", "e", "FILLED", filled=2, average=100.0),
    order("10:00:10", "t", "NEW", side="SELL", kind="LIMIT", reduce=True),
    order("10:05:00", "t", "FILLED", side="SELL", kind="LIMIT", reduce=True, filled=1, average=101.0),
    order("10:09:00", "s", "FILLED", side="SELL", kind="STOP_MARKET", reduce=True, filled=1, average=99.0),
]
# Fees at 10 bps taker, 0 maker: entry −0.2; TP1 +1; stop −1 − 0.099.
TOTAL = -0.2 + 1.0 + (-1.0 - 0.099)


@pytest.mark.parametrize(
    ("cut", "parts", "realized", "lowest", "entries"),
    [
        ("10:00:05", [("10:00:10", -0.2), ("10:05:00", 1.0), ("10:09:00", -1.099)], 0.0, 0.0, 1),
        ("10:00:10", [("10:00:10", -0.2), ("10:05:00", 1.0), ("10:09:00", -1.099)], 0.0, 0.0, 1),
        ("10:01:00", [("10:05:00", 1.0), ("10:09:00", -1.099)], -0.2, -0.2, 1),
        ("10:06:00", [("10:09:00", -1.099)], 0.8, -0.2, 1),
    ],
)
def test_a_cut_through_a_position_carries_what_its_fills_realise_afterwards(
    tmp_path: Path,
    cut: str,
    parts: list[tuple[str, float]],
    realized: float,
    lowest: float,
    entries: int,
) -> None:
    """Also while the entry is pending, at the fill itself, and with TP1 already filled."""
    state = start_of(root_of(tmp_path, LONG, [trade("10:09:00", "10:00:10", TOTAL)]), cut)
    carried = state["symbols"]["BTCUSDT"]["carried"]
    assert carried["closedAt"] == at("10:09:00")
    assert [part["timestamp"] for part in carried["parts"]] == [at(clock) for clock, _ in parts]
    assert [part["realizedPnl"] for part in carried["parts"]] == pytest.approx([pnl for _, pnl in parts])
    account = state["account"]
    assert (account["dateKey"], account["entries"]) == (DAY, entries)
    assert account["realizedPnl"] == pytest.approx(realized)
    assert account["lowestRealizedPnl"] == pytest.approx(lowest)
    InitialState.read(state)


@pytest.mark.parametrize("cut", ["10:00:00", "10:09:01"])
def test_before_the_decision_and_after_the_close_nothing_is_carried(tmp_path: Path, cut: str) -> None:
    """A decision at ``from`` belongs to the session; after the close the last exit and the day's PnL are known."""
    state = start_of(root_of(tmp_path, LONG, [trade("10:09:00", "10:00:10", TOTAL)]), cut)
    one = state["symbols"]["BTCUSDT"]
    assert one["carried"] is None
    closed = cut == "10:09:01"
    assert one["lastExitAt"] == (at("10:09:00") if closed else None)
    assert state["account"]["entries"] == int(closed)
    assert state["account"]["realizedPnl"] == pytest.approx(TOTAL if closed else 0.0)


def test_over_midnight_only_the_new_day_is_in_the_account(tmp_path: Path) -> None:
    """Yesterday's entry fee is in no figure; the exit of today is, and yesterday's decision is no entry of today."""
    lines = [
        order("23:00:00", "e", "NEW", day="2025-11-17"),
        order("23:00:10", "e", "FILLED", day="2025-11-17", filled=1, average=100.0),
        order("01:00:00", "s", "FILLED", side="SELL", reduce=True, filled=1, average=103.0),
    ]
    root = root_of(tmp_path, lines, [trade("01:00:00", "23:00:10", 3 - 0.1 - 0.103, entry_day="2025-11-17")])
    before, after = start_of(root, "00:30:00"), start_of(root, "02:00:00")
    assert before["account"] == {"dateKey": DAY, "realizedPnl": 0.0, "lowestRealizedPnl": 0.0, "entries": 0}
    (part,) = before["symbols"]["BTCUSDT"]["carried"]["parts"]
    assert part["realizedPnl"] == pytest.approx(3 - 0.103)
    assert after["account"]["realizedPnl"] == pytest.approx(3 - 0.103)
    assert after["account"]["entries"] == 0


def test_a_pending_entry_that_is_cancelled_later_is_carried_without_parts(tmp_path: Path) -> None:
    lines = [order("10:00:00", "e", "NEW", kind="LIMIT"), order("10:30:00", "e", "EXPIRED", kind="LIMIT")]
    root = root_of(tmp_path, lines, [])
    assert start_of(root, "10:10:00")["symbols"]["BTCUSDT"]["carried"] == {
        "closedAt": at("10:30:00"),
        "parts": [],
    }
    after = start_of(root, "10:31:00")
    assert after["symbols"]["BTCUSDT"] | {"book": None} == {
        "regime": None,
        "tradingBlocked": False,
        "book": None,
        "carried": None,
        "lastExitAt": None,
    }
    assert after["account"]["entries"] == 1


def test_the_account_is_that_of_all_symbols(tmp_path: Path) -> None:
    """Entries and PnL of a symbol that is not in the session count for the day; its position is not carried."""
    other = [record | {"symbol": "ETHUSDT"} for record in LONG]
    root = root_of(tmp_path, other, [trade("10:09:00", "10:00:10", TOTAL, symbol="ETHUSDT")])
    log_events(tmp_path, "BTCUSDT", state_event(at("09:00:00")))
    state = start_of(root, "10:06:00", "BTCUSDT")
    assert list(state["symbols"]) == ["BTCUSDT"]
    assert state["symbols"]["BTCUSDT"]["carried"] is None
    assert state["account"]["entries"] == 1
    assert state["account"]["realizedPnl"] == pytest.approx(0.8)


def test_the_trade_log_completes_an_order_log_that_lacks_the_close(tmp_path: Path) -> None:
    root = root_of(tmp_path, LONG[:-1], [trade("10:09:00", "10:00:10", TOTAL)])
    carried = start_of(root, "10:06:00")["symbols"]["BTCUSDT"]["carried"]
    assert carried["closedAt"] == at("10:09:00")
    (part,) = carried["parts"]
    assert part["realizedPnl"] == pytest.approx(-1.099)


def test_a_trade_log_alone_carries_the_whole_trade(tmp_path: Path) -> None:
    root = root_of(tmp_path, [], [trade("10:09:00", "10:00:10", -2.5)])
    carried = start_of(root, "10:06:00")["symbols"]["BTCUSDT"]["carried"]
    assert carried == {
        "closedAt": at("10:09:00"),
        "parts": [{"timestamp": at("10:09:00"), "realizedPnl": -2.5}],
    }


def test_without_logged_rates_the_fees_of_the_trade_go_by_notional(tmp_path: Path) -> None:
    """Fees 4 on notionals 200, 101, 99: the entry bears half of them."""
    root = root_of(tmp_path, LONG, [trade("10:09:00", "10:00:10", -4.0, fees=4.0)], taker=None)
    state = start_of(root, "10:01:00")
    assert state["account"]["realizedPnl"] == pytest.approx(-2.0)
    parts = state["symbols"]["BTCUSDT"]["carried"]["parts"]
    assert [part["realizedPnl"] for part in parts] == pytest.approx([1 - 1.01, -1 - 0.99])


@pytest.mark.parametrize("reason", ["DATA_GAP", "SESSION_END"])
def test_a_close_that_no_limit_saw_is_in_no_account_and_starts_no_cooldown(
    tmp_path: Path, reason: str
) -> None:
    root = root_of(tmp_path, LONG, [trade("10:09:00", "10:00:10", TOTAL, reason=reason)])
    state = start_of(root, "10:10:00")
    assert state["account"]["realizedPnl"] == pytest.approx(0.8)
    assert state["symbols"]["BTCUSDT"]["lastExitAt"] is None


def test_a_position_that_a_hole_ends_is_one_position(tmp_path: Path) -> None:
    """Its trade record is of the last price before the hole, its closing order of the first one after it."""
    late = [*LONG[:-1], LONG[-1] | {"timestamp": at("10:30:00")}]
    root = root_of(tmp_path, late, [trade("10:09:00", "10:00:10", TOTAL, reason="DATA_GAP")])
    inside, after = start_of(root, "10:20:00"), start_of(root, "10:31:00")
    assert inside["symbols"]["BTCUSDT"]["carried"] == {"closedAt": at("10:30:00"), "parts": []}
    assert after["symbols"]["BTCUSDT"]["carried"] is None
    assert inside["account"]["entries"] == after["account"]["entries"] == 1
    assert after["account"]["realizedPnl"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("limit", "again", "cut", "closed", "exited"),
    [
        (None, None, "10:10:00", "10:29:00", None),
        (None, None, "10:29:30", None, "10:29:00"),
        (1, None, "10:10:00", "10:30:00", None),
        (1, "10:30:20", "10:10:00", "10:29:00", None),
    ],
)
def test_an_entry_that_never_filled_leaves_no_cooldown(
    tmp_path: Path, limit: int | None, again: str | None, cut: str, closed: str | None, exited: str | None
) -> None:
    """The model lets cooldown_s follow what is carried; the bot had none, so the end stands one cooldown earlier.

    Where open positions are limited the entry counts to its real end, unless the log shows an entry within that time.
    """
    lines = [order("10:00:00", "e", "NEW", kind="LIMIT"), order("10:30:00", "e", "EXPIRED", kind="LIMIT")]
    if again is not None:
        lines.append(order(again, "f", "NEW", kind="LIMIT"))
    root = root_of(tmp_path, lines, [], taker=None)
    params = {"cooldownS": 60.0, "maxOpenPositions": limit}
    append(tmp_path / "system" / "trading_params.jsonl", {"timestamp": at("00:00:00"), "params": params})
    one = start_of(root, cut)["symbols"]["BTCUSDT"]
    assert one["carried"] == (None if closed is None else {"closedAt": at(closed), "parts": []})
    assert one["lastExitAt"] == (None if exited is None else at(exited))


def test_funding_that_a_position_paid_is_a_part_of_its_own(tmp_path: Path) -> None:
    """A LONG of 1 (after TP1) pays mark · rate at the settlement; the trade's PnL contains it once."""
    funding = pl.DataFrame(
        {
            "timestamp": pl.Series([at("10:07:00"), at("10:20:00")]).str.to_datetime(
                time_unit="ns", time_zone="UTC"
            ),
            "funding_rate": [0.001, 0.5],
            "mark_price": [100.0, 100.0],
        }
    )
    root = root_of(tmp_path, LONG, [trade("10:09:00", "10:00:10", TOTAL - 0.1)])
    write_funding(root, "BTCUSDT", funding)
    parts = start_of(root, "10:06:00")["symbols"]["BTCUSDT"]["carried"]["parts"]
    assert [(part["timestamp"], pytest.approx(part["realizedPnl"])) for part in parts] == [
        (at("10:07:00"), -0.1),
        (at("10:09:00"), -1.099),
    ]


def test_partial_fills_are_increments_of_their_order(tmp_path: Path) -> None:
    """``filledQty`` and ``avgFillPrice`` of an order are sums so far."""
    lines = [
        order("10:00:00", "e", "NEW"),
        order("10:00:01", "e", "PARTIALLY_FILLED", filled=1, average=100.0),
        order("10:00:02", "e", "FILLED", filled=4, average=103.0),
        order("10:01:00", "x", "FILLED", side="SELL", reduce=True, filled=4, average=110.0),
    ]
    state = start_of(root_of(tmp_path, lines, [], taker=0.0), "10:00:30")
    (part,) = state["symbols"]["BTCUSDT"]["carried"]["parts"]
    assert part["realizedPnl"] == pytest.approx(4 * (110 - 103))


def test_every_cut_of_a_simulated_hour_splits_its_money_without_rest(tmp_path: Path) -> None:
    """Account before + parts of what is carried + trades decided afterwards = all closed trades of the log, at any cut.
    Carried is what the state machine had on; entries are its decisions so far."""
    root = DataRoot(tmp_path)
    for name in ("events", "orders", "trades_log", "system"):
        shutil.copytree(SAMPLE / name, tmp_path / name)
    symbols = frames.list_symbols(root)
    trades, events = frames.load_trades(root).frame, frames.load_events(root, symbols).frame
    ns = pl.col("timestamp").dt.timestamp("ns")
    first, last = events.select(ns.min().alias("first"), ns.max().alias("last")).row(0)
    decided = events.filter(
        (pl.col("to_state") == "PENDING_ENTRY") & (pl.col("from_state") != "PENDING_ENTRY")
    )
    entered = pl.col("entry_timestamp").dt.timestamp("ns")
    unseen = pl.col("reason").is_in(["DATA_GAP", "SESSION_END"])
    rng = random.Random(3)
    carried_seen = 0
    for cut in [first, *(rng.randrange(first, last) for _ in range(40))]:
        state = InitialState.read(initial_state(root, cut, symbols))
        assert state.account is not None
        assert state.account.entries == decided.filter(ns < cut).height
        carried = {symbol: found for symbol in symbols if (found := state.of(symbol).carried) is not None}
        for symbol in symbols:
            own = events.filter((pl.col("symbol") == symbol) & (ns < cut)).sort(
                "timestamp", maintain_order=True
            )
            on = own.height > 0 and own["to_state"][-1] in ("LONG", "SHORT", "PENDING_ENTRY")
            assert (symbol in carried) == on
        carried_seen += len(carried)
        before = trades.filter(~unseen & (ns < cut))["realized_pnl"].sum()
        # Of the trades that close later, those of carried positions began before the cut.
        on_at_cut = [
            row["realized_pnl"]
            for row in trades.filter(~unseen & (ns >= cut)).with_columns(ns.alias("ns")).iter_rows(named=True)
            if row["symbol"] in carried and carried[row["symbol"]].closed_ns == row["ns"]
        ]
        if (
            any(found.closed_ns is None for found in carried.values())
            or trades.filter(unseen & (entered < cut)).height
        ):
            continue
        parts = sum(part.realized_pnl for found in carried.values() for part in found.parts)
        assert state.account.realized_pnl + parts == pytest.approx(before + sum(on_at_cut), abs=1e-9)
    assert carried_seen > 10


@pytest.mark.parametrize("variant", ["latency", "limit entries, midnight"])
def test_a_replay_from_any_cut_makes_the_recorded_trades(tmp_path: Path, variant: str) -> None:
    """Two symbols, daily limits, latency, midnight: trades decided after the cut are the recorded ones, to the bit."""
    lab = Lab(tmp_path)
    simulate(lab.root, variant)
    events, ns = lab.events(), pl.col("timestamp").dt.timestamp("ns")
    decisions = events.filter(
        (pl.col("to_state") == "PENDING_ENTRY") & (pl.col("from_state") != "PENDING_ENTRY")
    )
    trades = lab.trades().sort("entry_timestamp")
    trades = trades.join_asof(
        decisions.select("symbol", decided="timestamp").sort("decided"),
        left_on="entry_timestamp",
        right_on="decided",
        by="symbol",
        check_sortedness=False,
    )
    columns = ["symbol", "side", "entry_timestamp", "timestamp", "entry_price", "close_price", "realized_pnl"]
    first, last = events.select(ns.min().alias("first"), ns.max().alias("last")).row(0)
    rng = random.Random(4)
    carried = 0
    for number in range(6):
        cut = rng.randrange(first, last)
        name = f"cut-{number}"
        lab.build_replay_session(iso(cut), iso(last + 1), ["AIUSDT", "BTCUSDT"], session_id=name)
        state = lab.session(name).initial_state
        assert state is not None
        carried += sum(one["carried"] is not None for one in state["symbols"].values())
        engine = lab.engine()
        engine.start_session(name, speed_factor=float("inf"))
        engine.wait()
        assert engine.last_run is not None
        replayed = engine.last_run.trades.sort("entry_timestamp").select(columns)
        expected = trades.filter(pl.col("decided").dt.timestamp("ns") >= cut).select(columns)
        assert replayed.equals(expected), f"cut at {iso(cut)}"
    assert carried


def test_a_built_session_has_the_state_in_its_meta(tmp_path: Path) -> None:
    root = root_of(tmp_path, LONG, [trade("10:09:00", "10:00:10", TOTAL)])
    log_events(tmp_path, "BTCUSDT", state_event(at("10:07:00"), to="LONG", score=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manifest = build_replay_session(root, at("10:06:00"), at("11:00:00"), "BTCUSDT", ["SCORING_UPDATE"])
    built = SessionStore(root).open(manifest.session_id).initial_state
    assert built == initial_state(root, parse_ns(at("10:06:00")), ["BTCUSDT"])
    assert date_key(parse_ns(at("10:06:00"))) == built["account"]["dateKey"]
    assert iso(parse_ns(at("10:09:00"))) == built["symbols"]["BTCUSDT"]["carried"]["closedAt"]
