"""Import the log of another program: its signals, orders, fills and trades become logs of a data root.

>>> report = import_logs("data", "tradesv3.sqlite", "freqtrade")                                # doctest: +SKIP
>>> print(report)                                                                               # doctest: +SKIP

What the source does not know is null in the log, never 0. An import may be repeated: it adds only what is new. The
source is never written.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab.config import Config
from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.columns import WORDS
from replaylab.importers.foreign_sources import (
    FIELDS,
    LOGS,
    ROWS,
    Field,
    Source,
    dtype_of,
    read_mapping,
    suggest,
    words_of,
)
from replaylab.importers.intake import FileReport, ImportReport, Reject
from replaylab.importers.rebuilt_trades import (
    compare_trades,
    in_base_currency,
    rebuild_trades,
    with_converted_fees,
    with_excursions,
    with_funding,
    with_orders_of_fills,
)
from replaylab.importers.text_tables import Clock, folded, parse_times
from replaylab.logging import FileStreamManager, Redactor
from replaylab.paths import DataRoot, is_safe_symbol

_SYMBOL = {"remove": "/-_", "cut_at": ":", "upper": True, "words": {}}
# Rejects that are kept with their text; all are counted.
_KEPT = 100
_SHOWN = 5
_UTC = pl.Datetime("ns", "UTC")
Source_ = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass
class LogImportReport(ImportReport):
    """What an import of another program's log did, or (``dry_run``) would do.

    ``preview``: by log, the first lines as they would be written. ``unmapped``: by table, the columns that nothing
    names. ``compared``: the source's own trades beside those rebuilt from its fills, with the difference of their PnL.
    """

    preview: dict[str, pl.DataFrame] = field(default_factory=dict)
    unmapped: dict[str, list[str]] = field(default_factory=dict)
    compared: pl.DataFrame | None = None

    def __str__(self) -> str:
        lines = [super().__str__()]
        for table, columns in self.unmapped.items():
            if columns:
                lines.append(
                    f"  not used of {table}: {', '.join(columns[:20])}{' ...' * (len(columns) > 20)}"
                )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: that of an ImportReport, with the preview, the unmapped columns and the comparison."""
        compared = [] if self.compared is None else self.compared.to_dicts()
        shown = {log: frame.to_dicts() for log, frame in self.preview.items()}
        return {**super().to_dict(), "preview": shown, "unmapped": self.unmapped, "compared": compared}


def import_logs(
    root: str | os.PathLike[str] | DataRoot,
    source: Source_,
    preset: str | None = None,
    mapping: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    symbol: str | None = None,
    strategy: str | None = None,
    *,
    dry_run: bool = False,
    max_rejects: float = 0.01,
    config: Config | None = None,
) -> LogImportReport:
    """Write signals, orders and trades of another program into the logs of ``root``, and report what was found.

    >>> import_logs("data", "executions.json", "bybit-executions")                              # doctest: +SKIP
    >>> import_logs("data", "bot.sqlite", mapping="bot.toml", dry_run=True).preview["orders"]    # doctest: +SKIP

    ``source``: SQLite (also while the program writes it), CSV, JSON, JSON Lines or Parquet; one file or several.
    ``preset``: one of ``PRESETS``; ``mapping``: a dict or a TOML file, see docs/your-bot.md; with both, the mapping's
    entries replace those of the preset. ``symbol``: import this one only (by its name here), or names it where the
    source does not. ``strategy``: of a source with several, the one to import, or "*": each symbol then gets the
    strategy's name as a suffix. ``dry_run``: write nothing. ``max_rejects``: a table of which a larger share is
    rejected for one reason is refused.

    Fills without trades: closed trades are rebuilt at average cost. Where the source has both, its own trades are
    written and ``compared`` shows the difference of each. MFE and MAE are computed where ``history/`` has the prices.
    Raises HistoryError; nothing is written then.
    """
    data = DataRoot(root)
    chosen = read_mapping(preset, mapping)
    tables = Source(source)
    report = LogImportReport(preset or "mapping", "source")
    work = _Import(
        data, tables, chosen, report, symbol=symbol, max_rejects=max_rejects, config=config or Config()
    )
    logs = work.read()
    logs = _one_strategy(logs, strategy, data, report)
    return work.finish(logs, dry_run=dry_run)


def suggest_mapping(source: Source_) -> dict[str, Any]:
    """Propose a mapping for files of another program, by the names of their tables and columns.

    >>> suggest_mapping("bot.sqlite")["orders"]["columns"]                                      # doctest: +SKIP
    """
    return suggest(Source(source))


# ---- Tables to rows ----------------------------------------------------------------------------------------


class _Import:
    """One import: reads the mapped tables, judges their rows, and writes logs."""

    def __init__(
        self,
        root: DataRoot,
        source: Source,
        mapping: dict[str, Any],
        report: LogImportReport,
        *,
        symbol: str | None,
        max_rejects: float,
        config: Config,
    ) -> None:
        self.root, self.source, self.mapping, self.report = root, source, mapping, report
        self.symbol, self.max_rejects = symbol, max_rejects
        self.redactor = Redactor(config.logging.redact)
        self.symbols = {**_SYMBOL, **mapping.get("symbol", {})}
        # By table: the columns that a section reads.
        self.used: dict[str, set[str]] = {}
        # By table and column: values of the rows that ``only`` leaves out, and the words that some section keeps.
        self.left_out = defaultdict[tuple[str, str], Counter[str]](Counter)
        self.wanted = defaultdict[tuple[str, str], set[str]](set)

    def read(self) -> dict[str, pl.DataFrame]:
        """Return the rows of each mapped log with our columns, times as ns."""
        logs = {log: self._section(log, self.mapping[log]) for log in LOGS if log in self.mapping}
        found = {log: frame for log, frame in logs.items() if frame is not None}
        if not found:
            tables = ", ".join(
                f"{name} ({', '.join(have[:8])} ...)" if have else f"{name} (no rows)"
                for name, have in self.source.tables.items()
            )
            raise HistoryError(f"no table of the source fits the mapping; there are {tables}")
        if all(frame.is_empty() for frame in found.values()):
            raise HistoryError("nothing to import: no row of the source is usable and of the wanted symbol")
        if set(found) == {"funding"}:
            raise HistoryError(
                "funding payments alone make no log: import them together with the trades or fills that they belong to"
            )
        self.report.unmapped = {
            table: [name for name in self.source.tables[table] if name not in used]
            for table, used in self.used.items()
        }
        for (table, name), values in self.left_out.items():
            words = self.wanted[table, name]
            others = [
                f"{n:,} with {value}" for value, n in values.most_common() if folded(value) not in words
            ]
            if others:
                self.report.note(f"{table}: rows are left out by {name}: {', '.join(others[:10])}")
        unused = [table for table in self.source.tables if table not in self.used]
        if unused:
            self.report.note(f"tables of the source that are not used: {', '.join(unused)}")
        return found

    def _section(self, log: str, section: Mapping[str, Any]) -> pl.DataFrame | None:
        """Return the rows of every table of a section; a row that several files hold counts once."""
        columns = dict(section.get("columns", {}))
        constants = dict(section.get("constants", {}))
        if self.symbol is not None and "symbol" not in columns:
            constants.setdefault("symbol", self.symbol)
        needed = {
            name for ours, name in columns.items() if FIELDS[log][ours].needed and ours not in constants
        }
        if "query" in section:
            try:
                tables, reads = self.source.ask(log, section["query"])
            except HistoryError as error:
                if not section.get("optional"):
                    raise
                self.report.note(f"{log}: not in the source ({error})")
                return None
            for table, names in reads.items():
                self.used.setdefault(table, set()).update(names)
            return self._tables(log, section, columns, constants, tables)
        wanted, have = section.get("table"), self.source.tables
        tables = self.source.find(log, wanted, set(columns.values()), needed | set(section.get("only", {})))
        if not tables and not section.get("optional") and wanted is None and len(have) == 1:
            tables = list(have)  # The error names the column that it lacks.
        if not tables:
            if wanted is not None and len(self.mapping) <= 2:
                close = did_you_mean(str(wanted), list(have))
                raise HistoryError(f"no table {wanted!r}: there are {', '.join(have)}.{close}")
            self.report.note(f"{log}: the source has no such table")
            return None
        return self._tables(log, section, columns, constants, tables)

    def _tables(
        self,
        log: str,
        section: Mapping[str, Any],
        columns: dict[str, str],
        constants: dict[str, Any],
        tables: list[str],
    ) -> pl.DataFrame:
        parts = [self._table(log, section, columns, constants, table) for table in tables]
        if len(parts) > 1:
            # Pages of one answer may overlap: what is twice in one file stays twice.
            names = [name for name in parts[0].columns if name != "row"]
            nth = [part.with_columns(nth=pl.int_range(pl.len()).over(names)) for part in parts]
            whole = pl.concat(nth, how="vertical_relaxed")
            once = whole.unique([*names, "nth"], keep="first", maintain_order=True).drop("nth")
            if once.height < whole.height:
                self.report.note(
                    f"{log}: {whole.height - once.height:,} rows are in several files and count once"
                )
            # Row numbers tell rows of one time apart, so they differ between files.
            parts = [once.with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))]
        return self._once(log, parts[0])

    def _once(self, log: str, frame: pl.DataFrame) -> pl.DataFrame:
        """Drop rows that repeat an order or a fill of the same id in every field."""
        name = {"orders": "order_id", "fills": "trade_id"}.get(log)
        if name is None or frame[name].null_count() == frame.height:
            return frame
        repeats = ~frame.select(pl.struct(pl.exclude("row")).is_first_distinct()).to_series()
        first = ~repeats | frame[name].is_null()
        if not first.all():
            self.report.note(
                f"{log}: {int((~first).sum()):,} rows repeat one of the same {name} and count once"
            )
        return frame.filter(first)

    def _table(
        self,
        log: str,
        section: Mapping[str, Any],
        columns: dict[str, str],
        constants: dict[str, Any],
        table: str,
    ) -> pl.DataFrame:
        have = self.source.tables[table]
        columns = self._present(log, table, columns, have, constants)
        extra = have if section.get("extra") == "*" else list(section.get("extra", []))
        extra = [name for name in extra if name not in columns.values()]
        only = {
            name: [folded(str(word)) for word in words] for name, words in section.get("only", {}).items()
        }
        join = self._join(section.get("join"))
        for name in (*extra, *only):
            if name not in have:
                raise HistoryError(f"{table}: no column {name!r}.{did_you_mean(name, have)}")
        wanted = list(dict.fromkeys([*columns.values(), *extra, *only, *([join[0]] if join else [])]))
        file = FileReport(f"{self.source.file(table)}:{table}")
        self.report.files.append(file)
        self.used.setdefault(table, set()).update(wanted)
        rows = _Rows(log, section, self.mapping, constants, columns, file=file.name, owner=self)
        parts = []
        for first, frame in self.source.read(table, wanted):
            frame = frame.with_row_index("row", first)
            file.rows += frame.height
            for name, words in only.items():
                cells = frame[name].cast(pl.String).map_elements(folded, return_dtype=pl.String)
                kept = cells.is_in(words).fill_null(value=False)
                self.left_out[table, name].update(
                    frame[name].cast(pl.String).fill_null("nothing").filter(~kept)
                )
                self.wanted[table, name].update(words)
                frame = frame.filter(kept)
            if join is not None:
                on = frame[join[0]].cast(pl.String)
                frame = frame.with_columns(on.alias("~on")).join(
                    join[1], on="~on", how="left", maintain_order="left"
                )
            parts.append(rows.take(frame, extra))
        rows.judge(file)
        whole = pl.concat(parts, how="vertical_relaxed") if parts else rows.empty()
        if self.symbol is not None:
            whole = whole.filter(pl.col("symbol") == self.symbol)
        return whole

    def _present(
        self, log: str, table: str, columns: dict[str, str], have: list[str], constants: dict[str, Any]
    ) -> dict[str, str]:
        """Return the columns that the table has. Raises HistoryError where a needed one is missing."""
        if not have:
            raise HistoryError(f"{self.source.file(table)}: holds no rows")
        missing = {ours: name for ours, name in columns.items() if name not in have}
        for ours, name in missing.items():
            if FIELDS[log][ours].needed and ours not in constants:
                raise HistoryError(
                    f"{table}: no column {name!r} for {log}.{ours}.{did_you_mean(name, have)} There are "
                    f"{', '.join(have[:30])}"
                )
        kept = {ours: name for ours, name in columns.items() if ours not in missing}
        optional = [name for ours, name in missing.items() if not FIELDS[log][ours].needed]
        if optional:
            self.report.note(f"{table} has no {', '.join(optional)}: null in the log")
        for ours, declared in FIELDS[log].items():
            if declared.needed and ours not in kept and ours not in constants:
                raise HistoryError(f"mapping.{log}: name a column or a constant for {ours}")
        return kept

    def _join(self, join: Mapping[str, Any] | None) -> tuple[str, pl.DataFrame] | None:
        """Return the column to join on, and columns of another table by it (as ``~field``)."""
        if join is None or join["table"] not in self.source.tables:
            return None
        named = join["columns"]
        parts = [frame for _, frame in self.source.read(join["table"], [join["key"], *named.values()])]
        if not parts:
            return None
        other = pl.concat(parts, how="vertical_relaxed").select(
            pl.col(join["key"]).cast(pl.String).alias("~on"),
            *(pl.col(name).alias(f"~{ours}") for ours, name in named.items()),
        )
        return join["on"], other.unique("~on", keep="first")

    # Writing.

    def finish(self, logs: dict[str, pl.DataFrame], *, dry_run: bool) -> LogImportReport:
        """Rebuild trades, write the logs (not with ``dry_run``) and return the report."""
        report = self.report
        trades = logs.get("trades")
        for log in ("fills", "orders"):
            if log in logs and self.mapping[log].get("contracts"):
                logs[log] = in_base_currency(log, logs[log], report)
        if "fills" in logs:
            rebuilt = rebuild_trades(with_converted_fees(self.root, logs["fills"], report), report)
            if trades is None:
                trades = rebuilt
            else:
                report.compared = compare_trades(trades, rebuilt)
                both = report.compared.drop_nulls("difference")
                off = int((both["difference"].abs() > 1e-8).sum())
                report.note(
                    f"{both.height:,} trades of the source have a rebuilt one, {off:,} of these differ in PnL by more "
                    f"than 1e-8; {report.compared.height - both.height:,} have none: see .compared"
                )
            logs["orders"] = with_orders_of_fills(logs.get("orders"), logs["fills"], report)
        if trades is not None:
            if "funding" in logs:
                trades = with_funding(trades, logs["funding"], report)
            trades = with_excursions(self.root, trades, report)
        made = {"signals": _event_lines, "orders": _order_lines, "trades": _trade_lines}
        frames = {"signals": logs.get("signals"), "orders": logs.get("orders"), "trades": trades}
        with _Writer(self.root, report, dry_run=dry_run) as writer:
            for log, frame in frames.items():
                if frame is not None and frame.height:
                    for lines in made[log](frame):
                        report.preview.setdefault(log, _shown(lines))
                        writer.write(log, lines)
        if dry_run:
            report.note("dry run: nothing was written")
        return report


class _Rows:
    """Turns rows of one table into our columns; rejects those that lack a needed field."""

    def __init__(
        self,
        log: str,
        section: Mapping[str, Any],
        mapping: Mapping[str, Any],
        constants: Mapping[str, Any],
        columns: Mapping[str, str],
        *,
        file: str,
        owner: _Import,
    ) -> None:
        self.log, self.fields, self.constants, self.columns = log, FIELDS[log], constants, columns
        self.file, self.owner = file, owner
        unit = section.get("time_unit", mapping.get("time_unit"))
        zone = section.get("time_zone", mapping.get("time_zone"))
        self.clocks = {
            name: Clock(columns.get(name, name), unit, zone=zone)
            for name, declared in self.fields.items()
            if declared.kind == "time"
        }
        self.scale = section.get("scale", {})
        self.words = {
            name: words_of(declared.kind, section.get("words", {}).get(name, {}))
            for name, declared in self.fields.items()
            if declared.kind in WORDS
        }
        self.reasons: Counter[str] = Counter()
        self.total = 0

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(
            schema={"row": pl.UInt32, **{name: dtype_of(d) for name, d in self.fields.items()}}
        )

    def take(self, frame: pl.DataFrame, extra: list[str]) -> pl.DataFrame:
        """Return the usable rows of a piece of the table."""
        self.total += frame.height
        rejected = pl.Series([False] * frame.height, dtype=pl.Boolean)
        columns: dict[str, pl.Series] = {"row": frame["row"]}
        for name, declared in self.fields.items():
            given = self._cells(frame, name)
            found = self._convert(name, declared, given)
            bad = found.is_null() & (given.is_not_null() | declared.needed)
            if declared.kind not in ("symbol", "time") and not declared.needed:
                # An empty cell of text tables is no value.
                bad &= given.cast(pl.String).str.strip_chars() != ""
            bad = bad.fill_null(declared.needed) & ~rejected
            if bad.any():
                self._reject(name, declared, frame["row"], given, bad)
                rejected |= bad
            columns[name] = found
        if extra:
            columns["extra"] = self._extra(frame, extra)
        return pl.DataFrame(columns).filter(~rejected)

    def _cells(self, frame: pl.DataFrame, name: str) -> pl.Series:
        if name in self.columns:
            cells = frame[self.columns[name]]
            constant = self.constants.get(name)
            return cells.fill_null(constant) if constant is not None else cells
        if f"~{name}" in frame.columns:
            return frame[f"~{name}"]
        constant = self.constants.get(name)
        dtype = pl.String if constant is None else None
        return pl.Series(name, [constant], dtype=dtype).new_from_index(0, frame.height)

    def _convert(self, name: str, declared: Field, cells: pl.Series) -> pl.Series:
        kind = declared.kind
        if kind == "time":
            if cells.null_count() == len(cells):
                return pl.Series(name, [None], dtype=pl.Int64).new_from_index(0, len(cells))
            return parse_times(cells, self.clocks[name], self.owner.report.note)
        if kind == "number":
            if isinstance(cells.dtype, pl.String):
                cells = cells.str.strip_chars()
            numbers = cells.cast(pl.Float64, strict=False)
            numbers = numbers.set(~numbers.is_finite().fill_null(True), None)
            return numbers * self.scale[name] if name in self.scale else numbers
        text = cells.cast(pl.String)
        if kind == "text":
            return text.replace("", None)
        unique = text.drop_nulls().unique()
        if kind == "symbol":
            known = {one: self._symbol(one) for one in unique}
        else:
            words = self.words[name]
            known = {one: words.get(folded(one), words.get(one.strip())) for one in unique}
        return text.replace_strict(known, default=None, return_dtype=pl.String)

    def _symbol(self, text: str) -> str | None:
        rule = self.owner.symbols
        if text in rule["words"]:
            return str(rule["words"][text])
        name = text.strip().split(rule["cut_at"], 1)[0] if rule["cut_at"] else text.strip()
        name = "".join(mark for mark in name if mark not in rule["remove"])
        name = name.upper() if rule["upper"] else name
        return name if name and is_safe_symbol(name) else None

    def _extra(self, frame: pl.DataFrame, names: list[str]) -> pl.Series:
        """Return further columns as JSON objects without secrets."""
        rows = frame.select(names).to_dicts()
        plain = (
            {name: _inner(value) for name, value in row.items() if value is not None and value == value}
            for row in rows
        )
        return pl.Series(
            "extra", [orjson.dumps(self.owner.redactor.redact(row), default=str).decode() for row in plain]
        )

    def _reject(self, name: str, declared: Field, rows: pl.Series, given: pl.Series, bad: pl.Series) -> None:
        column = self.columns.get(name, name)
        report = self.owner.report
        reason = f"{name}: no usable {declared.kind} in {column}"
        self.reasons[reason] += int(bad.sum())
        for row, value in zip(rows.filter(bad), given.filter(bad), strict=True):
            if len(report.rejects) >= _KEPT:
                break
            shown = "nothing" if value is None else repr(value)[:60]
            detail = self.clocks[name].wrong(value) if declared.kind == "time" else f"{reason}, found {shown}"
            if declared.kind in WORDS and value is not None:
                words = self.owner.mapping.get(self.log, {}).get("words", {})
                detail += f"; name it in mapping.{self.log}.words.{name}{' too' if name in words else ''}"
            report.rejects.append(Reject(self.file, int(row), detail))

    def judge(self, file: FileReport) -> None:
        """Count the rejects; raise HistoryError where too many have one reason."""
        file.rejects += sum(self.reasons.values())
        for reason, count in self.reasons.most_common(1):
            # One bad row of a short table is no reason to refuse it.
            if count > max(1, self.owner.max_rejects * self.total):
                field = reason.partition(":")[0]
                rejects = [r for r in self.owner.report.rejects if r.file == self.file]
                example = next((r for r in rejects if field in r.reason), None)
                text = "" if example is None else f" (row {example.line}: {example.reason})"
                raise HistoryError(
                    f"{self.file}: {count:,} of {self.total:,} rows rejected: {reason}{text}. More than "
                    f"{self.owner.max_rejects:.3g} of the rows are refused; --max-rejects allows more"
                )


def _inner(value: Any) -> Any:
    """Return the object in a cell that holds JSON, so that secrets inside are found; else the cell."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


# ---- Strategies --------------------------------------------------------------------------------------------


def _one_strategy(
    logs: dict[str, pl.DataFrame], wanted: str | None, root: DataRoot, report: LogImportReport
) -> dict[str, pl.DataFrame]:
    """Keep one strategy, or give each symbol the suffix of its own. Raises HistoryError where several would mix."""
    counts: Counter[str] = Counter()
    for frame in logs.values():
        for name, count in frame["strategy"].value_counts().iter_rows():
            counts[name or ""] += count
    names = sorted(name for name in counts if name)
    listed = ", ".join(f"{name} ({counts[name]:,} rows)" for name in names)
    if wanted not in (None, "*") and wanted not in names:
        raise HistoryError(f"no strategy {wanted!r} in the source: there are {listed or 'none'}")
    if wanted is None and len(names) > 1:
        raise HistoryError(
            f'the source has several strategies: {listed}. Their positions would mix: import one with strategy="NAME" '
            'into a root of its own, or all with strategy="*", which adds the strategy to each symbol'
        )
    if wanted == "*":
        report.note("each symbol has its strategy as a suffix: import prices with the same name (save_as)")
        suffix = pl.when(pl.col("strategy").is_null()).then(pl.lit("")).otherwise("_" + pl.col("strategy"))
        clean = suffix.str.replace_all(r"[^\w.@+=-]", "-")
        return {log: frame.with_columns(symbol=pl.col("symbol") + clean) for log, frame in logs.items()}
    one = wanted or (names[0] if names else None)
    if one is not None:
        # Rows that name no strategy (signals, funding) belong to all of them.
        keep = pl.col("strategy").is_null() | (pl.col("strategy") == one)
        logs = {log: frame.filter(keep) for log, frame in logs.items()}
        before = {name for name in _strategies(root) if name != one}
        if before:
            raise HistoryError(
                f"{root.path} holds orders or trades of the strategy {', '.join(sorted(before))}: import {one} into "
                'a root of its own, or both with strategy="*"'
            )
    return logs


def _strategies(root: DataRoot) -> set[str]:
    """Return the strategies whose plain symbols are in the logs of a root."""
    from replaylab import frames

    found: set[str] = set()
    for kind, load in (("trades_log", frames.load_trades), ("orders", frames.load_orders)):
        if root.files(kind):
            frame = load(root).frame
            found |= {
                name
                for symbol, name in frame.select("symbol", "strategy").unique().iter_rows()
                if name is not None and not symbol.endswith(f"_{name}")
            }
    return found


# ---- Lines -------------------------------------------------------------------------------------------------


def _iso_text(column: str) -> pl.Expr:
    """Return ns as ISO strings, with as many digits as it needs: three, six or nine."""
    ns = pl.col(column)
    text = ns.cast(_UTC).dt.strftime("%Y-%m-%dT%H:%M:%S%.9f")
    cut = pl.when(ns % 1_000_000 == 0).then(text.str.head(23)).when(ns % 1_000 == 0).then(text.str.head(26))
    return cut.otherwise(text) + "Z"


def _day(column: str) -> pl.Expr:
    return pl.col(column).cast(_UTC).dt.strftime("%Y-%m-%d")


def _event_lines(signals: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield signals as lines of state events; a regime that changed is an event of its own, before the score."""
    regimes: dict[str, str] = {}
    for part in signals.sort("timestamp", "row", maintain_order=True).iter_slices(ROWS):
        yield _events_of(part, regimes)


def _events_of(ordered: pl.DataFrame, regimes: dict[str, str]) -> pl.DataFrame:
    rows = []
    columns = [name for name in ("score", "side", "price", "regime") if ordered[name].is_not_null().any()]
    extras = ordered["extra"].to_list() if "extra" in ordered.columns else [None] * ordered.height
    stamped = ordered.select(
        _iso_text("timestamp").alias("text"), "timestamp", "symbol", "strategy", *columns
    )
    for row, extra in zip(stamped.iter_rows(named=True), extras, strict=True):
        symbol, regime = row["symbol"], row.get("regime")
        base = {"timestamp": row["text"], "symbol": symbol, "fromState": "IDLE", "toState": "IDLE"}
        if regime is not None and regimes.get(symbol) != regime:
            regimes[symbol] = regime
            line = {**base, "eventType": "REGIME_UPDATE", "reason": "imported", "extra": {"regime": regime}}
            rows.append((symbol, symbol, orjson.dumps(line)))
        given = {name: row[name] for name in columns if name != "regime" and row[name] is not None}
        if row["strategy"] is not None:
            given["strategy"] = row["strategy"]
        more = orjson.loads(extra) if extra else {}
        line = {**base, "eventType": "SCORING_UPDATE", "reason": "imported", "extra": {**more, **given}}
        rows.append((symbol, symbol, orjson.dumps(line)))
    schema = {"symbol": pl.String, "file": pl.String, "line": pl.Binary}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _order_lines(orders: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield orders as lines: one for when it was sent, one for what became of it, where both times are known."""
    status, updated = pl.col("status"), pl.col("updated_at")
    ended = updated.is_not_null() & (status != "NEW")
    nothing = pl.lit(None, pl.Float64)
    sent = orders.filter(ended).with_columns(
        status=pl.lit("NEW"),
        filled_qty=pl.lit(0.0),
        avg_fill_price=nothing,
        last_error=pl.lit(None, pl.String),
        phase=0,
    )
    done = orders.with_columns(timestamp=pl.when(ended).then(updated).otherwise("timestamp"), phase=1)
    both = pl.concat([sent, done], how="diagonal_relaxed").sort("timestamp", "row", "phase")
    # A filled order that names no quantity filled whole.
    filled = pl.col("filled_qty").fill_null(
        pl.when(pl.col("status") == "FILLED").then("qty").when(pl.col("status") == "NEW").then(0.0)
    )
    fields = {
        "timestamp": _iso_text("timestamp"),
        "clientOrderId": pl.col("order_id"),
        "exchangeOrderId": pl.col("exchange_order_id"),
        "symbol": pl.col("symbol"),
        "side": pl.col("side"),
        "type": pl.col("type").str.to_uppercase(),
        "timeInForce": pl.col("time_in_force"),
        "price": pl.col("price"),
        "triggerPrice": pl.col("trigger_price"),
        "qty": pl.col("qty"),
        "reduceOnly": (pl.col("reduce_only") == "true").fill_null(value=False),
        "status": pl.col("status"),
        "filledQty": filled.fill_null(0.0),
        "avgFillPrice": pl.col("avg_fill_price"),
        "notionalUsd": pl.col("notional_usd"),
        "mode": pl.col("mode").fill_null("LIVE"),
        "source": pl.col("source").fill_null("IMPORT"),
        "lastError": pl.col("last_error"),
    }
    for part in both.iter_slices(ROWS):
        yield _lines(part, fields)


def _trade_lines(trades: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield closed trades as lines of the trade log; what is not known is null."""
    held = (pl.col("timestamp") - pl.col("entry_time")) / 1e9
    fields = {
        "timestamp": _iso_text("timestamp"),
        "dateKey": _day("timestamp"),
        "symbol": pl.col("symbol"),
        "side": pl.col("side"),
        "entryPrice": pl.col("entry_price"),
        "closePrice": pl.col("close_price"),
        "qty": pl.col("qty"),
        "leverage": pl.col("leverage"),
        "realizedPnl": pl.col("realized_pnl"),
        "mfe": pl.col("mfe"),
        "mae": pl.col("mae"),
        "durationSeconds": pl.col("duration_seconds").fill_null(held),
        "mode": pl.col("mode").fill_null("LIVE"),
        "entryTimestamp": _iso_text("entry_time"),
        "reason": pl.col("reason"),
        "fees": pl.col("fees"),
        "funding": pl.col("funding"),
    }
    for part in trades.sort("timestamp", "entry_time", maintain_order=True).iter_slices(ROWS):
        yield _lines(part, fields)


def _lines(frame: pl.DataFrame, fields: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """Return JSON lines with their time, symbol and day; a strategy where the source has one."""
    if frame["strategy"].is_not_null().any():
        fields = {**fields, "strategy": pl.col("strategy")}
    text = frame.select(expression.alias(name) for name, expression in fields.items()).write_ndjson()
    lines = text.encode().splitlines() if frame.height else []
    return frame.select(symbol="symbol", file=_day("timestamp")).with_columns(
        line=pl.Series(lines, dtype=pl.Binary)
    )


def _shown(lines: pl.DataFrame) -> pl.DataFrame:
    """Return the first lines as a table."""
    rows = [orjson.loads(line) for line in lines["line"].head(_SHOWN)]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, dict):
                row[name] = orjson.dumps(value).decode()
    return pl.DataFrame(rows, infer_schema_length=None)


class _Writer:
    """Appends lines that a log does not hold yet; counts what is new and what was there."""

    def __init__(self, root: DataRoot, report: LogImportReport, *, dry_run: bool) -> None:
        self.root, self.report, self.dry_run = root, report, dry_run
        self.streams = FileStreamManager()
        # By file: how often it holds each record, and how often the source named it so far.
        self.known: dict[Path, tuple[Counter[int], Counter[int]]] = {}
        self.changed = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.streams.close()
        if self.changed:
            self.report.note(
                f"{self.changed:,} trades are in the log with another PnL or funding: they are kept unchanged"
            )

    def write(self, log: str, lines: pl.DataFrame) -> None:
        """Append the lines of one log, file by file; two equal signals or trades of the source are two records."""
        path = {"signals": self.root.events, "orders": self.root.orders, "trades": self.root.trades_log}[log]
        for (name,), part in lines.group_by("file", maintain_order=True):
            place = path(str(name))
            if place not in self.known:
                self.known[place] = _known_records(place, log), Counter()
            held, named = self.known[place]
            new, added = [], Counter[str]()
            for symbol, line in part.select("symbol", "line").iter_rows():
                key, whole = _keys(line, log)
                named[key] = 1 if log == "orders" else named[key] + 1
                if named[key] > held[key]:
                    new.append(line)
                    added[symbol] += 1
                elif whole not in held:
                    self.changed += 1
            for symbol, count in part["symbol"].value_counts().iter_rows():
                tape = self.report.tape(log, symbol)
                tape.rows += count
                tape.added += added[symbol]
                tape.duplicates += count - added[symbol]
            if new and not self.dry_run:
                place.parent.mkdir(parents=True, exist_ok=True)
                # A crash leaves whole lines, and the next import adds the rest.
                self.streams.append(os.fspath(place), b"\n".join(new) + b"\n", len(new), sync=True)


def _known_records(path: Path, log: str) -> Counter[int]:
    held = Counter[int]()
    try:
        with path.open("rb") as file:
            for line in file:
                held.update(set(_keys(line.rstrip(b"\n"), log)))
    except FileNotFoundError:
        pass
    return held


def _keys(line: bytes, log: str) -> tuple[int, int]:
    """Return hashes of what makes a line the same record, and of what must not differ then.

    A trade is known by its times, prices and quantity: MFE, MAE and funding may have been computed since.
    """
    if log != "trades":
        return hash(line), hash(line)
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return hash(line), hash(line)
    names = ("timestamp", "entryTimestamp", "symbol", "side", "entryPrice", "closePrice", "qty")
    key = tuple(row.get(name) for name in names)
    return hash(key), hash((*key, row.get("realizedPnl"), row.get("funding")))
