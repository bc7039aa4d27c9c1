"""The main job from end to end: a tape goes in; logs, a session, a replay, a sweep, tables and plots come out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from replaylab.errors import ReplayError
from replaylab.lab import Lab
from replaylab.params import ScoringParams
from replaylab.records import ReplayManifest
from replaylab.replay import ReplayRun

__all__ = ["run"]

# One signal a second: readable logs, and still some thousands of decisions in the hour.
_SCORING = ScoringParams(interval_ms=1_000)
_THRESHOLDS = [round(0.20 + 0.05 * step, 2) for step in range(13)]
_TP1 = [0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3]
_STOPS = [0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3]
_HOLDS = [None, 60.0, 180.0, 600.0]
_MARK = ".replaylab-demo"


def run(
    output: str | Path = "demo-results", *, seed: int = 7, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Simulate, log, load, build, replay, sweep and plot; return what came out, with the folder.

    >>> from replaylab import demo
    >>> demo.run("results")["n_trades"]                            # doctest: +SKIP

    ``output`` is made, or its earlier results are replaced; a folder that holds
    anything else is refused (FileExistsError).
    """
    from replaylab import plots
    from replaylab.importers.synthetic import write_synthetic

    tell = say or (lambda _: None)
    folder = _fresh(Path(output).absolute())
    lab = Lab(folder / "data")

    tell("1. A market: two symbols, an hour, from the seeded generator (synthetic, not real).")
    write_synthetic(lab.root, seed=seed)
    tape = lab.market_trades()
    tell(f"   {tape.height:,} trades, {lab.order_book().height:,} order book updates")

    tell("2. The trading system runs over it in SIM mode and logs everything it does.")
    sim = lab.run_sim(scoring=_SCORING)
    tell(
        f"   {sim.events.height:,} state events, {sim.orders.height:,} order lines, {sim.trades.height:,} trades"
    )

    hour = pl.col("timestamp").dt.truncate("1h")
    first, last = tape.select(hour.min().alias("first"), hour.max().dt.offset_by("1h").alias("last")).row(0)
    manifest = lab.build_replay_session(first, last, sorted(tape["symbol"].unique()), notes="demo")
    tell(f"3. A replay session: {manifest.session_id}, {manifest.total_events:,} events")

    timed, seconds = _replay(lab, manifest, 1_000.0)
    tell(f"4. Replayed at 1,000 × real time in {seconds:.1f} s")
    fast, seconds = _replay(lab, manifest, float("inf"))
    same = "the same decisions" if fast.digest == timed.digest else "DIFFERENT decisions"
    tell(f"   and as fast as it can in {seconds:.1f} s: {same} (digest {fast.digest[:12]})")

    grid = {"entry_threshold": _THRESHOLDS, "tp1_pct": _TP1, "sl_pct": _STOPS, "max_hold_s": _HOLDS}
    started = time.perf_counter()
    result = lab.sweep(manifest, grid, params=lab.config.trading.replace(tp2_pct=0.6), progress=False)
    tell(f"5. Swept {result.frame.height:,} parameter sets in {time.perf_counter() - started:.2f} s")
    default = lab.backtest(manifest)
    best_row = int(result.best(1)["row"][0])
    best_trades = result.trades(best_row)

    tables, plots_folder = folder / "tables", folder / "plots"
    tables.mkdir()
    plots_folder.mkdir()
    result.frame.write_parquet(tables / "sweep.parquet")
    result.best(20).write_csv(tables / "best.csv")
    default.trades.write_csv(tables / "trades_default.csv")
    best_trades.write_csv(tables / "trades_best.csv")
    symbol = manifest.symbols[0]
    drawn = {
        "price_with_trades.png": plots.price_with_trades(
            lab.market_trades(symbol),
            best_trades.filter(best_trades["symbol"] == symbol),
            title=symbol,
            params=result.params_of(best_row),
        ),
        "equity.png": plots.equity({"best of the sweep": best_trades, "default parameters": default.trades}),
        "sweep_heatmap.png": result.heatmap("entry_threshold", "sl_pct"),
    }
    for name, figure in drawn.items():
        figure.savefig(plots_folder / name, dpi=120)

    report = lab.report(result, folder / "report.html")

    summary = {
        "folder": str(folder),
        "report": str(report),
        "session_id": manifest.session_id,
        "n_events": manifest.total_events,
        "n_trades": default.trades.height,
        "n_combinations": result.frame.height,
        "net_pnl_default": float(default.metrics["net_pnl"]),
        "net_pnl_best": float(result.frame["net_pnl"][best_row]),
        "replay_is_deterministic": fast.digest == timed.digest,
    }
    tell("")
    best_trades_n = int(result.frame["n_trades"][best_row])
    tell(
        f"   default parameters: net PnL {summary['net_pnl_default']:.2f} USD, {default.trades.height} trades"
    )
    tell(
        f"   best combination of 30 trades or more: {summary['net_pnl_best']:.2f} USD, {best_trades_n} trades"
    )
    tell(
        f"   The best of {result.frame.height:,} tries on one synthetic hour proves nothing about a real market."
    )
    tell("   Fills come from the recorded order book, limits fill when traded through (docs/fills.md).")
    tell("")
    tell(f"Tables, plots and the data root are in {folder}")
    tell(f"Open the report in a browser: {report}")
    return summary


def _replay(lab: Lab, manifest: ReplayManifest, speed: float) -> tuple[ReplayRun, float]:
    engine = lab.engine()
    started = time.perf_counter()
    engine.start_session(manifest, speed_factor=speed)
    engine.wait()
    if engine.last_run is None:
        raise ReplayError(f"the replay did not run: {engine.get_status().error}")
    return engine.last_run, time.perf_counter() - started


def _fresh(folder: Path) -> Path:
    """Make the folder; one that an earlier demo made is replaced, any other that holds something is refused."""
    mark = folder / _MARK
    if folder.exists() and any(folder.iterdir()):
        if not mark.is_file():
            raise FileExistsError(
                17, "is not empty and not of an earlier demo: name another with -o", str(folder)
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return folder
