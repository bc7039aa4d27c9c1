"""Logs travel both ways between replaylab and JavaScript programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from replaylab import Lab

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed: nothing to exchange files with")

WRITER = r"""
const fs = require("fs"), path = require("path");
const root = process.argv[2];
for (const dir of ["events", "trades_log", "orders", "system", "trades"])
  fs.mkdirSync(path.join(root, dir), {recursive: true});
const at = (s) => new Date(Date.UTC(2025, 10, 18, 10, 0, s, 250)).toISOString();
const line = (o) => JSON.stringify(o);
// \r\n, blank lines, unicode, an unknown field that first appears late, whole numbers in float fields.
const events = [
  {timestamp: at(0), symbol: "BTCUSDT", fromState: "IDLE", toState: "IDLE", eventType: "SCORING_UPDATE",
   reason: "ispod praga – čekam 🚀", extra: {score: 1, side: "LONG", price: 50000.0}},
  {timestamp: at(1), symbol: "BTCUSDT", fromState: "IDLE", toState: "IDLE", eventType: "REGIME_UPDATE",
   reason: "", extra: {}, botVersion: {major: 3}},
];
fs.writeFileSync(path.join(root, "events/BTCUSDT.jsonl"), line(events[0]) + "\r\n\r\n" + line(events[1]) + "\r\n");
const trade = {timestamp: at(2), dateKey: "2025-11-18", symbol: "BTCUSDT", side: "SHORT", entryPrice: 50000.0,
  closePrice: 49990.5, qty: 1e-3, leverage: 5, realizedPnl: -0.0, mfe: 1e21, mae: -1e-7, durationSeconds: 12,
  mode: "LIVE"};
fs.writeFileSync(path.join(root, "trades_log/day-2025-11-18.jsonl"), line(trade) + "\n");
const order = {timestamp: at(3), clientOrderId: "x1", exchangeOrderId: null, symbol: "BTCUSDT", side: "BUY",
  type: "LIMIT", timeInForce: "GTC", price: 50000, triggerPrice: null, qty: 2,
  reduceOnly: false, status: "NEW", filledQty: 0,
  avgFillPrice: null, notionalUsd: 100000, mode: "LIVE", source: "STATE_MACHINE", lastError: null};
fs.writeFileSync(path.join(root, "orders/day-2025-11-18.jsonl"), line(order) + "\n");
fs.writeFileSync(path.join(root, "trades/BTCUSDT.json"), JSON.stringify(
  [{timestamp: at(4), price: 50000, qty: 1, side: "BUY", tradeId: null}], null, 2));
fs.writeFileSync(path.join(root, "system/execution_snapshot.json"), JSON.stringify({timestamp: at(5), mode: "LIVE",
  safeMode: false, pendingOrdersCount: 0, activeOrdersCount: 1.0, lastErrorAt: null, lastErrorMessage: null}, null, 2));
"""

# The types of the specification's record formats; "?" may be null.
READER = r"""
const fs = require("fs"), path = require("path");
const root = process.argv[2];
const kinds = {
  events: {timestamp: "iso", symbol: "string", fromState: "string", toState: "string", eventType: "string",
    reason: "string", extra: "object"},
  trades_log: {timestamp: "iso", dateKey: "string", symbol: "string", side: ["LONG", "SHORT"], entryPrice: "number",
    closePrice: "number", qty: "number", leverage: "number", realizedPnl: "number", mfe: "number", mae: "number",
    durationSeconds: "number", mode: ["SIM", "DRY_RUN", "LIVE"]},
  orders: {timestamp: "iso", clientOrderId: "string", exchangeOrderId: "string?", symbol: "string",
    side: ["BUY", "SELL"], type: "string", timeInForce: "string", price: "number?",
    triggerPrice: "number?", qty: "number",
    reduceOnly: "boolean", status: "string", filledQty: "number", avgFillPrice: "number?", notionalUsd: "number",
    mode: ["SIM", "DRY_RUN", "LIVE"], source: "string", lastError: "string?"},
  risk: {timestamp: "iso", account: "object", dailyStats: "object", riskFlags: "object"},
  tpsl: {timestamp: "iso", symbol: "string", side: ["LONG", "SHORT"], entryPrice: "number", tp1Price: "number",
    tp2Price: "number", stopLossPrice: "number", breakEvenPrice: "number", trailingActive: "boolean",
    trailingDistancePct: "number", pumpOverrideApplied: "boolean", spoofingOverrideApplied: "boolean",
    volatilityOverrideApplied: "boolean"},
  execution: {timestamp: "iso", mode: ["SIM", "DRY_RUN", "LIVE"], safeMode: "boolean", pendingOrdersCount: "number",
    activeOrdersCount: "number", lastErrorAt: "string?", lastErrorMessage: "string?"},
  health: {timestamp: "iso", services: "object"},
  manifest: {sessionId: "string", createdAt: "iso", createdBy: ["MANUAL", "AUTO", "TEST"], sourceDateRange: "object",
    symbols: "array", eventTypes: "array", speedFactor: "number", notes: "string?", totalEvents: "number"},
  replayEvent: {timestamp: "iso", type: "string", symbol: "string?", payload: "object"},
};
const counts = {}, wrong = [];
function fits(value, kind) {
  if (Array.isArray(kind)) return kind.includes(value);
  if (kind.endsWith("?")) return value === null || fits(value, kind.slice(0, -1));
  if (kind === "iso") return typeof value === "string" && !Number.isNaN(Date.parse(value));
  if (kind === "array") return Array.isArray(value);
  if (kind === "number") return typeof value === "number" && Number.isFinite(value);
  return typeof value === kind && value !== null && !Array.isArray(value);
}
function check(kind, object, where) {
  counts[kind] = (counts[kind] || 0) + 1;
  for (const [field, type] of Object.entries(kinds[kind]))
    if (!fits(object[field], type)) wrong.push(`${where}: ${field} = ${JSON.stringify(object[field])}`);
}
function lines(kind, file) {
  const text = fs.readFileSync(file, "utf8");
  if (!text.endsWith("\n")) wrong.push(`${file}: no newline at the end`);
  text.split("\n").slice(0, -1).forEach((line, i) => check(kind, JSON.parse(line), `${file}:${i + 1}`));
}
for (const kind of ["events", "trades_log", "orders"])
  for (const name of fs.readdirSync(path.join(root, kind)))
    if (name.endsWith(".jsonl")) lines(kind, path.join(root, kind, name));
for (const kind of ["risk", "tpsl", "execution", "health"])
  check(kind, JSON.parse(fs.readFileSync(path.join(root, "system", `${kind}_snapshot.json`), "utf8")), kind);
const sessions = path.join(root, "replay/sessions");
for (const id of fs.readdirSync(sessions)) {
  check("manifest", JSON.parse(fs.readFileSync(path.join(sessions, id, "manifest.json"), "utf8")), id);
  lines("replayEvent", path.join(sessions, id, "events.jsonl"));
}
console.log(JSON.stringify({counts, wrong: wrong.slice(0, 20)}));
"""


def node(script: str, root: Path, folder: Path) -> str:
    file = folder / "script.js"
    file.write_text(script, encoding="utf-8")
    done = subprocess.run([str(NODE), str(file), str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_node
def test_logs_written_by_javascript_load_with_the_same_values(tmp_path: Path) -> None:
    """Whole numbers in float fields, missing and unknown fields, unicode, CRLF, blank lines: all as written."""
    root = tmp_path / "data"
    node(WRITER, root, tmp_path)
    lab = Lab(root)
    events = lab.events()
    assert events["reason"].to_list() == ["ispod praga – čekam 🚀", ""]
    assert [json.loads(text) for text in events["extra"]] == [
        {"score": 1, "side": "LONG", "price": 50000},
        {},
    ]
    assert [json.loads(text or "{}") for text in events["unknown_fields"]] == [
        {},
        {"botVersion": {"major": 3}},
    ]
    assert events["timestamp"].dt.epoch("ms").to_list() == [1763460000250, 1763460001250]
    trade = lab.trades().row(0, named=True)
    assert (trade["entry_price"], trade["qty"], trade["leverage"], trade["mfe"], trade["mae"]) == (
        50000.0,
        0.001,
        5.0,
        1e21,
        -1e-7,
    )
    order = lab.orders().row(0, named=True)
    assert (order["price"], order["trigger_price"], order["reduce_only"]) == (50000.0, None, False)
    assert lab.market_trades()["price"].to_list() == [50000.0]
    snapshot = lab.snapshot("execution")
    assert snapshot is not None
    assert snapshot.to_dict()["activeOrdersCount"] == 1
    assert lab.rejects().is_empty()


@needs_node
def test_javascript_reads_every_file_that_replaylab_writes(tmp_path: Path) -> None:
    """Every field of the specification's formats is there with the right type, in every line of the sample root."""
    lab = Lab.sample()
    found = json.loads(node(READER, lab.root.path, tmp_path))
    assert found["wrong"] == []
    assert set(found["counts"]) == {
        "events",
        "trades_log",
        "orders",
        "risk",
        "tpsl",
        "execution",
        "health",
        "manifest",
        "replayEvent",
    }
    assert found["counts"]["events"] == lab.events().height
