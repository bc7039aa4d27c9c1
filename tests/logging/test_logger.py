"""The central logger: where each record goes, in what form, and what is refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from replaylab.config import LoggingConfig
from replaylab.errors import InterlockError, RecordError, UnsafeNameError
from replaylab.logging import Logger
from replaylab.params import TradingParams
from replaylab.records import OrderLogRecord, StateEvent, TradeLogRecord
from tests.logging import sample_records as sample


def lines(path: Path) -> list[dict]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_t1_log_state_event_writes_a_valid_json_line(tmp_path):
    """T1: after log_state_event for a symbol, data/events/<symbol>.jsonl exists and holds a valid JSON line."""
    with Logger(tmp_path) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event()).result()
        assert lines(tmp_path / "events" / "BTCUSDT.jsonl") == [sample.state_event()]


def test_t3_every_order_is_in_the_file_of_its_day(tmp_path):
    """T3: every simulated order is in data/orders/day-YYYY-MM-DD.jsonl, in the order of the calls."""
    orders = [
        sample.order(clientOrderId=f"sim-{n}", status=status)
        for n in range(5)
        for status in ("NEW", "FILLED")
    ]
    with Logger(tmp_path) as logger:
        for order in orders:
            logger.log_order(OrderLogRecord.from_dict(order)).result()
    assert lines(tmp_path / "orders" / "day-2025-11-18.jsonl") == orders


def test_a_record_object_and_its_plain_dict_give_the_same_line(tmp_path):
    with Logger(tmp_path) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event())
        logger.log_state_event("BTCUSDT", StateEvent.from_dict(sample.state_event()))
        logger.log_trade(TradeLogRecord.from_dict(sample.trade()))
    first, second = (tmp_path / "events" / "BTCUSDT.jsonl").read_bytes().splitlines()
    assert first == second
    assert lines(tmp_path / "trades_log" / "day-2025-11-18.jsonl") == [sample.trade()]


def test_unknown_fields_are_written_as_they_came(tmp_path):
    with Logger(tmp_path) as logger:
        logger.log_trade(sample.trade(exchange="bybit", nested={"α": [1, None]}))
        logger.log_order(OrderLogRecord.from_dict(sample.order(exchange="bybit")))
    assert lines(tmp_path / "trades_log" / "day-2025-11-18.jsonl")[0]["nested"] == {"α": [1, None]}
    assert lines(tmp_path / "orders" / "day-2025-11-18.jsonl")[0]["exchange"] == "bybit"


def test_a_day_file_takes_the_utc_date_of_the_record(tmp_path):
    """The date comes from dateKey, else from the timestamp in UTC; never from the clock of this machine."""
    with Logger(tmp_path) as logger:
        plain = sample.trade(timestamp="2025-11-19T01:30:00+02:00")
        del plain["dateKey"]
        logger.log_trade(plain).result()
        logger.log_trade(sample.trade(timestamp="2025-11-19T00:00:00.000Z", dateKey="2025-11-19")).result()
        logger.log_trade(sample.trade(dateKey="2025-11-17")).result()
        logger.log_order(sample.order(timestamp="2025-11-18T23:59:59.999999999Z")).result()
        logger.log_order(sample.order(timestamp="2025-11-19T00:00:00Z")).result()
    assert sorted(path.name for path in (tmp_path / "trades_log").iterdir()) == [
        "day-2025-11-17.jsonl",
        "day-2025-11-18.jsonl",
        "day-2025-11-19.jsonl",
    ]
    filled = lines(tmp_path / "trades_log" / "day-2025-11-18.jsonl")[0]
    assert filled["dateKey"] == "2025-11-18"
    assert list(filled)[:2] == ["timestamp", "dateKey"]
    assert sorted(path.name for path in (tmp_path / "orders").iterdir()) == [
        "day-2025-11-18.jsonl",
        "day-2025-11-19.jsonl",
    ]


def test_snapshots_are_overwritten_whole_at_an_indent_of_two(tmp_path):
    with Logger(tmp_path) as logger:
        for name, snapshot in sample.snapshots().items():
            write = getattr(logger, f"write_{name}_snapshot")
            write({**snapshot, "more": "x" * 5000}).result()
            write(snapshot).result()
            path = tmp_path / "system" / f"{name}_snapshot.json"
            assert json.loads(path.read_text()) == snapshot
            assert path.read_text().startswith('{\n  "timestamp": ')
    assert len(list((tmp_path / "system").iterdir())) == 4, "no temporary file is left"


def test_replay_manifest_and_events_go_to_the_session_folder(tmp_path):
    event = {"timestamp": "2025-11-18T10:00:00.000Z", "type": "RISK_UPDATE", "symbol": None, "payload": {}}
    with Logger(tmp_path) as logger:
        logger.write_replay_manifest("s1", sample.manifest()).result()
        logger.append_replay_event("s1", event).result()
        with pytest.raises(RecordError, match="sessionId"):
            logger.write_replay_manifest("s2", sample.manifest())
    folder = tmp_path / "replay" / "sessions" / "s1"
    assert json.loads((folder / "manifest.json").read_text()) == sample.manifest()
    assert lines(folder / "events.jsonl") == [event]


def test_trading_params_in_force_are_a_line_each(tmp_path):
    with Logger(tmp_path) as logger:
        logger.log_trading_params("2025-11-18T10:00:00Z", TradingParams(sl_pct=0.5)).result()
        logger.log_trading_params("2025-11-18T11:00:00Z", TradingParams()).result()
        with pytest.raises(RecordError, match="timestamp"):
            logger.log_trading_params("today", TradingParams())
    found = lines(tmp_path / "system" / "trading_params.jsonl")
    assert [line["timestamp"] for line in found] == ["2025-11-18T10:00:00Z", "2025-11-18T11:00:00Z"]
    assert TradingParams.from_dict(found[0]["params"]) == TradingParams(sl_pct=0.5)


@pytest.mark.parametrize(
    ("method", "record", "field"),
    [
        ("log_trade", sample.trade(side="BUY"), "side"),
        ("log_trade", sample.trade(realizedPnl=float("nan")), "realizedPnl"),
        ("log_order", sample.order(reduceOnly="no"), "reduceOnly"),
        ("write_tpsl_snapshot", {**sample.snapshots()["tpsl"], "tp1Price": "101"}, "tp1Price"),
        ("write_health_snapshot", {"timestamp": "2025-11-18T10:00:00Z"}, "services"),
    ],
)
def test_an_invalid_record_is_refused_at_the_call_before_anything_is_written(tmp_path, method, record, field):
    with Logger(tmp_path / "root") as logger, pytest.raises(RecordError) as caught:
        getattr(logger, method)(record)
    assert caught.value.field == field
    assert not (tmp_path / "root").exists()


def test_an_event_of_another_symbol_is_refused(tmp_path):
    with Logger(tmp_path) as logger:
        for event in (sample.state_event(), StateEvent.from_dict(sample.state_event())):
            with pytest.raises(RecordError, match="expected 'ETHUSDT'") as caught:
                logger.log_state_event("ETHUSDT", event)
            assert caught.value.field == "symbol"
        with pytest.raises(UnsafeNameError):
            logger.log_state_event("../x", sample.state_event("../x"))
    assert not list(tmp_path.iterdir())


def test_handles_can_be_awaited_gathered_and_waited_for(tmp_path):
    async def main() -> None:
        async with Logger(tmp_path) as logger:
            assert await logger.log_state_event("BTCUSDT", sample.state_event()) is None
            handles = [logger.log_state_event("BTCUSDT", sample.state_event()) for _ in range(3)]
            await asyncio.gather(*handles)
            await asyncio.wait_for(logger.log_trade(sample.trade()), 5)
            assert all(handle.done() for handle in handles)

    asyncio.run(main())
    assert len(lines(tmp_path / "events" / "BTCUSDT.jsonl")) == 4


def test_replay_mode_cannot_write_into_live_logs(tmp_path):
    """With run_mode REPLAY every live log is refused; session files and the health snapshot are not."""
    logger = Logger(tmp_path, run_mode="REPLAY")
    live = {
        "log_state_event": ("BTCUSDT", sample.state_event()),
        "log_trade": (sample.trade(),),
        "log_order": (sample.order(),),
        "write_risk_snapshot": (sample.snapshots()["risk"],),
        "write_tpsl_snapshot": (sample.snapshots()["tpsl"],),
        "write_execution_snapshot": (sample.snapshots()["execution"],),
        "log_trading_params": ("2025-11-18T10:00:00Z", TradingParams()),
    }
    for method, arguments in live.items():
        with pytest.raises(InterlockError, match=method):
            getattr(logger, method)(*arguments)
    assert not list(tmp_path.iterdir())
    logger.write_replay_manifest("s1", sample.manifest()).result()
    logger.write_health_snapshot(sample.snapshots()["health"]).result()

    run = Logger(logger.root.run("s1", "run-1"), run_mode="REPLAY", replay_run=True)
    for method, arguments in live.items():
        getattr(run, method)(*arguments).result()
    run.close()
    logger.close()
    assert not (tmp_path / "events").exists()
    assert (tmp_path / "replay/sessions/s1/runs/run-1/events/BTCUSDT.jsonl").exists()


def test_a_closed_logger_opens_its_files_again(tmp_path):
    logger = Logger(tmp_path)
    for _ in range(2):
        logger.log_trade(sample.trade()).result()
        logger.close()
        assert logger.streams.open_files == 0
    assert len(lines(tmp_path / "trades_log" / "day-2025-11-18.jsonl")) == 2


def test_importing_the_logger_pulls_in_nothing_heavy():
    code = (
        "import sys, replaylab.logging; "
        "print([name for name in ('pandas','polars','numba','numpy','pyarrow','IPython','jupyterlab',"
        "'jupyter_server','ipywidgets','matplotlib','tornado','asyncio') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("settings", [{}, {"queue": True}])
def test_a_symbol_that_differs_from_another_only_in_case_is_refused(tmp_path, settings):
    """On macOS both would share a file. In one logger, in the next one, and in every kind of file of a symbol."""
    with Logger(tmp_path, LoggingConfig(**settings)) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event())
        with pytest.raises(UnsafeNameError, match=r"'btcusdt' differs from 'BTCUSDT'.*only in case"):
            logger.log_state_event("btcusdt", sample.state_event("btcusdt"))
        logger.log_state_event("BTCUSDT", sample.state_event())
        logger.write_tape("BTCUSDT", [])
        logger.write_metrics("BTC/USDT:USDT", [])
    with Logger(tmp_path, LoggingConfig(**settings)) as logger:
        for write in (
            lambda: logger.log_state_event("BtcUsdt", sample.state_event("BtcUsdt")),
            lambda: logger.write_tape("btcusdt", []),
            lambda: logger.write_metrics("BTC/usdt:USDT", []),
        ):
            with pytest.raises(UnsafeNameError, match="only in case"):
                write()
        logger.log_state_event("ETHUSDT", sample.state_event("ETHUSDT"))
        logger.log_state_event("BTCUSDT", sample.state_event())
    assert {path.name for path in (tmp_path / "events").iterdir()} == {"BTCUSDT.jsonl", "ETHUSDT.jsonl"}
    assert len((tmp_path / "events/BTCUSDT.jsonl").read_text().splitlines()) == 3


def test_logs_of_both_spellings_that_exist_already_are_continued(tmp_path):
    """Where the file system has kept them apart so far, no line is refused."""
    (tmp_path / "events").mkdir()
    for symbol in ("BTCUSDT", "btcusdt"):
        (tmp_path / "events" / f"{symbol}.jsonl").touch()
    if len(list((tmp_path / "events").iterdir())) < 2:
        pytest.skip("this file system knows no case")
    with Logger(tmp_path) as logger:
        for symbol in ("BTCUSDT", "btcusdt"):
            logger.log_state_event(symbol, sample.state_event(symbol)).result()
    for symbol in ("BTCUSDT", "btcusdt"):
        assert len((tmp_path / "events" / f"{symbol}.jsonl").read_text().splitlines()) == 1
