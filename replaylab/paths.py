"""Where each file of a data root is, in both directions: a name becomes a path, and a path is classified by its name.

::

    root = DataRoot("data")
    root.events("BTC/USDT:USDT")                       # data/events/BTC%2FUSDT%3AUSDT.jsonl
    classify("data/orders/day-2025-11-18.jsonl").day   # "2025-11-18"
    root.files("history", tape="trades", symbol="BTCUSDT")

**Symbols** may have letters and digits of any script and ``. _ - + @ =``; these are their file names. The ``/`` and
``:`` of ccxt's symbols become ``%2F`` and ``%3A`` in file names, and every loader gives the symbol back as logged.
Two symbols that differ only in case would share a file on macOS and Windows: the second one is refused on every system.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from replaylab.errors import UnsafeNameError
from replaylab.timestamps import is_day

__all__ = [
    "SNAPSHOTS",
    "DataRoot",
    "Place",
    "check_case",
    "classify",
    "file_name",
    "is_safe_name",
    "is_safe_symbol",
    "live_of",
    "other_case",
    "rotated_parts",
    "safe_name",
    "safe_symbol",
    "symbol_of",
]

SNAPSHOTS = ("risk", "tpsl", "execution", "health")
_MARKS = frozenset("._-+@=")
_ENCODED = {"/": "%2F", ":": "%3A"}
_LONGEST = 200

# Every file of a data root, by kind. Files of sessions come first: a session may be named like another folder.
_PATTERNS = {
    "session_events": "replay/sessions/{session}/events.jsonl",
    "manifest": "replay/sessions/{session}/manifest.json",
    "session_meta": "replay/sessions/{session}/meta.json",
    "bookmarks": "replay/sessions/{session}/bookmarks.json",
    "session_digest": "replay/sessions/{session}/digest.json",
    "run": "replay/sessions/{session}/runs/{run}/run.json",
    "archived_events": "archive/events/{symbol}/day-{day}{part}.parquet",
    "archived_trades_log": "archive/trades_log/day-{day}{part}.parquet",
    "archived_orders": "archive/orders/day-{day}{part}.parquet",
    "summary_events": "summary/events/{symbol}/day-{day}.json",
    "summary_trades_log": "summary/trades_log/day-{day}.json",
    "summary_orders": "summary/orders/day-{day}.json",
    "history": "history/{tape}/{symbol}/day-{day}.parquet",
    "events": "events/{symbol}.jsonl",
    "trades_log": "trades_log/day-{day}.jsonl",
    "orders": "orders/day-{day}.jsonl",
    "market_trades": "trades/{symbol}.json",
    "order_book": "orderbook/{symbol}.json",
    "metrics": "metrics/{symbol}.json",
    "snapshot": "system/{snapshot}_snapshot.json",
    "replay_sessions_index": "system/replay_sessions.json",
    "trading_params": "system/trading_params.jsonl",
    "instruments": "system/instruments.json",
    "trials": "system/trials.jsonl",
    "replay_status": "system/replay_status.json",
    "replay_commands": "system/replay_commands.jsonl",
    "replay_lock": "system/replay.lock",
    "retention_report": "system/retention_report.json",
}
_FORMS = {
    "session": "[^/]+",
    "run": "[^/]+",
    "symbol": "[^/]+",
    "day": r"\d{4}-\d\d-\d\d",
    "part": r"(?:\.\d+)?",
    "tape": "trades|book|funding|gaps",
    "snapshot": "|".join(SNAPSHOTS),
}


def safe_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it may become a file name, else raise UnsafeNameError.

    >>> safe_name("2025-11-18T10-11-BTCUSDT", "session id")
    '2025-11-18T10-11-BTCUSDT'

    Allowed are letters and digits of any script (exchanges list symbols in Chinese) and ``. _ - + @ =``,
    not starting with a dot or a hyphen, at most 200 bytes in UTF-8, in Unicode normal form C.
    """
    _check_name(name, what, _MARKS)
    if len(name.encode()) > _LONGEST:
        raise UnsafeNameError(f"{what} {name[:40]!r}... is longer than {_LONGEST} bytes")
    return name


def safe_symbol(symbol: str) -> str:
    """Return ``symbol`` if it may be logged and become part of a file name, else raise UnsafeNameError.

    >>> safe_symbol("BTC/USDT:USDT")
    'BTC/USDT:USDT'

    As ``safe_name``, and ``/`` and ``:`` are allowed between other characters; no part may start with a dot.
    """
    file_name(symbol)
    return symbol


def file_name(symbol: str) -> str:
    """Return the name of a symbol's files, without an ending; raises UnsafeNameError. ``symbol_of`` is the inverse.

    >>> file_name("BTCUSDT"), file_name("BTC/USDT:USDT")
    ('BTCUSDT', 'BTC%2FUSDT%3AUSDT')
    """
    _check_name(symbol, "symbol", _MARKS | _ENCODED.keys())
    for part in re.split("[/:]", symbol):
        if not part or part[0] == ".":
            raise UnsafeNameError(
                f"symbol {symbol!r:.200}: expected a name before and after each / and :, found {part!r:.200}"
            )
    name = symbol.translate(_TRANSLATION)
    if len(name.encode()) > _LONGEST:
        raise UnsafeNameError(f"the file name of symbol {symbol[:40]!r}... is longer than {_LONGEST} bytes")
    return name


def check_case(path: Path, symbol: str) -> None:
    """Raise UnsafeNameError where the folder of ``path`` has a file or folder of another spelling of ``symbol``.

    >>> check_case(root.events("btcusdt"), "btcusdt")      # doctest: +SKIP

    ``path`` is where the symbol is stored. A file that exists under this very spelling is used.
    """
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 - names are enough
    except (FileNotFoundError, NotADirectoryError):
        return
    folded = path.name.casefold()
    if path.name not in names and (
        other := next((name for name in names if name.casefold() == folded), None)
    ):
        raise other_case(symbol, symbol_of(other.removesuffix(path.suffix)) or other)


def other_case(symbol: str, known: str) -> UnsafeNameError:
    """Return the error of a symbol that differs from a known one only in case."""
    return UnsafeNameError(
        f"symbol {symbol!r} differs from {known!r}, which is stored already, only in case: on macOS and Windows "
        f"both would share a file. Write {known!r}, or a name that differs in more"
    )


def symbol_of(name: str) -> str | None:
    """Return the symbol of a file name without its ending, or None for a name that no symbol has.

    >>> symbol_of("BTC%2FUSDT%3AUSDT"), symbol_of("BTC%20USDT")
    ('BTC/USDT:USDT', None)
    """
    symbol = name
    for mark, encoded in _ENCODED.items():
        symbol = symbol.replace(encoded, mark)
    try:
        return symbol if file_name(symbol) == name else None
    except UnsafeNameError:
        return None


def is_safe_name(name: str) -> bool:
    """Return whether a name may be that of a session or a run."""
    try:
        safe_name(name)
    except UnsafeNameError:
        return False
    return True


def is_safe_symbol(symbol: str) -> bool:
    """Return whether a symbol may be logged."""
    try:
        file_name(symbol)
    except UnsafeNameError:
        return False
    return True


@dataclass(frozen=True)
class Place:
    """What a path of a data root holds: its kind, and what its name says.

    ``kind`` is a name of a DataRoot method or property (``"events"``, ``"trades_log"``, ``"snapshot"``, ...), or
    ``"run"``, ``"bookmarks"``, ``"history"``, ``"archived_<log>"``, ``"summary_<log>"``. ``part`` is the number of an
    archived part, from 1. In a run of a replay ``session`` and ``run`` say which.
    """

    kind: str
    symbol: str | None = None
    day: str | None = None
    session: str | None = None
    run: str | None = None
    snapshot: str | None = None
    tape: str | None = None
    part: int = 1


def classify(path: str | os.PathLike[str]) -> Place | None:
    """Return what a path holds, judged by its last components; None for a file that is not replaylab's.

    >>> classify("data/events/BTC%2FUSDT%3AUSDT.jsonl").symbol
    'BTC/USDT:USDT'

    Hidden files, temporary files and names that no symbol, session or day has are None.
    """
    text = Path(path).as_posix()
    for kind, pattern in _MATCHERS.items():
        if match := pattern.search(text):
            return _in_run(_place(kind, match.groupdict()), text[: match.start()])
    return None


def rotated_parts(live: Path) -> list[Path]:
    """Return the parts into which a program such as logrotate cut a log, oldest first.

    >>> rotated_parts(Path("data/events/BTCUSDT.jsonl"))  # doctest: +SKIP
    [PosixPath('data/events/BTCUSDT.jsonl.2.gz'), PosixPath('data/events/BTCUSDT.jsonl.1')]

    Names: ``<log>.1`` (the newest), ``<log>.2``, ... or ``<log>-YYYYMMDD``, with ``.gz`` where compressed.
    """
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(live.parent) as entries:
        for entry in entries:
            match = _ROTATED.search(entry.name) if entry.name.startswith(live.name) else None
            if match is not None and match.start() + 6 == len(live.name) and entry.is_file():
                found.append((match["date"] or "", -int(match["number"] or 0), Path(entry)))
    return [path for _, _, path in sorted(found)]


def live_of(part: Path) -> Path | None:
    """Return the log of which a path is a rotated part by its name; None for any other path."""
    match = _ROTATED.search(part.name)
    return part.with_name(part.name[: match.start() + 6]) if match else None


@dataclass(frozen=True)
class DataRoot:
    """The files of one data root; computes paths, and lists them on demand (``files``).

    >>> DataRoot("data").events("BTCUSDT").as_posix().endswith("data/events/BTCUSDT.jsonl")
    True

    A run of a replay has the same layout, so it is a DataRoot too: ``root.run(session_id, run_id)``.
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str] | DataRoot) -> None:
        raw = path.path if isinstance(path, DataRoot) else Path(path)
        object.__setattr__(self, "path", raw.expanduser().absolute())

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def relative(self, path: Path) -> str:
        """Return ``path`` relative to the root as a string with forward slashes."""
        return path.relative_to(self.path).as_posix()

    def files(self, kind: str, **known: str) -> list[tuple[Place, Path]]:
        """Return the existing files of a kind, sorted by path; ``known`` values of its pattern narrow the search.

        >>> [place.symbol for place, _ in DataRoot("data").files("events")]  # doctest: +SKIP
        ['AIUSDT', 'BTCUSDT']

        Sorted by day, part and path. Folders, hidden files and files with other names are left out; a missing folder
        has none. Links are followed. Raises OSError for a folder that cannot be read.
        """
        steps = (
            _PATTERNS[kind].format(**{name: "{" + name + "}" for name in _FORMS} | _written(known)).split("/")
        )
        found = []
        for path in _walk(self.path, steps):
            place = classify(path)
            if place is not None and place.kind == kind:
                found.append((place, path))
        return sorted(found, key=lambda pair: (pair[0].day or "", pair[0].part, pair[1]))

    def rotated(self, kind: str) -> list[Place]:
        """Return the places of the live logs of a kind that have rotated parts (``rotated_parts``), sorted by path."""
        pattern = _PATTERNS[kind]
        folder = self.path / pattern.partition("/")[0]
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - names are enough
        lives = {folder / name[: match.start() + 6] for name in names if (match := _ROTATED.search(name))}
        return [place for live in sorted(lives) if (place := classify(live)) is not None]

    def symbols(self, kind: str, **known: str) -> list[str]:
        """Return the symbols that have files of a kind, sorted."""
        return sorted({place.symbol for place, _ in self.files(kind, **known) if place.symbol is not None})

    # Logs: JSON Lines, appended to.
    def events(self, symbol: str) -> Path:
        return self._of("events", symbol=symbol)

    def trades_log(self, day: str) -> Path:
        return self._of("trades_log", day=day)

    def orders(self, day: str) -> Path:
        return self._of("orders", day=day)

    @property
    def events_dir(self) -> Path:
        return self.path / "events"

    @property
    def trades_log_dir(self) -> Path:
        return self.path / "trades_log"

    @property
    def orders_dir(self) -> Path:
        return self.path / "orders"

    # Rolling files of one symbol: JSON.
    def market_trades(self, symbol: str) -> Path:
        return self._of("market_trades", symbol=symbol)

    def order_book(self, symbol: str) -> Path:
        return self._of("order_book", symbol=symbol)

    def metrics(self, symbol: str) -> Path:
        return self._of("metrics", symbol=symbol)

    # system/
    @property
    def system_dir(self) -> Path:
        return self.path / "system"

    def snapshot(self, name: str) -> Path:
        return self._of("snapshot", snapshot=name)

    @property
    def replay_sessions_index(self) -> Path:
        return self._of("replay_sessions_index")

    @property
    def trading_params(self) -> Path:
        return self._of("trading_params")

    @property
    def trials(self) -> Path:
        return self._of("trials")

    @property
    def instruments(self) -> Path:
        return self._of("instruments")

    @property
    def replay_status(self) -> Path:
        return self._of("replay_status")

    @property
    def replay_commands(self) -> Path:
        return self._of("replay_commands")

    @property
    def replay_lock(self) -> Path:
        return self._of("replay_lock")

    @property
    def retention_report(self) -> Path:
        return self._of("retention_report")

    # Replay sessions and their runs.
    @property
    def sessions_dir(self) -> Path:
        return self.path / "replay" / "sessions"

    def session_dir(self, session_id: str) -> Path:
        return self.sessions_dir / safe_name(session_id, "session id")

    def manifest(self, session_id: str) -> Path:
        return self._of("manifest", session=session_id)

    def session_events(self, session_id: str) -> Path:
        return self._of("session_events", session=session_id)

    def session_meta(self, session_id: str) -> Path:
        return self._of("session_meta", session=session_id)

    def bookmarks(self, session_id: str) -> Path:
        return self._of("bookmarks", session=session_id)

    def session_digest(self, session_id: str) -> Path:
        return self._of("session_digest", session=session_id)

    def runs_dir(self, session_id: str) -> Path:
        return self.session_dir(session_id) / "runs"

    def run(self, session_id: str, run_id: str) -> DataRoot:
        return DataRoot(self.runs_dir(session_id) / safe_name(run_id, "run id"))

    # Additions to the specification's tree.
    def history_dir(self, tape: str, symbol: str) -> Path:
        """``tape`` is "trades", "book", "funding" or "gaps"; one Parquet file per UTC day inside."""
        written = _written({"tape": tape, "symbol": symbol})
        return self.path / "history" / written["tape"] / written["symbol"]

    def history(self, tape: str, symbol: str, day: str) -> Path:
        return self._of("history", tape=tape, symbol=symbol, day=day)

    @property
    def summary_dir(self) -> Path:
        return self.path / "summary"

    @property
    def archive_dir(self) -> Path:
        return self.path / "archive"

    def _of(self, kind: str, **names: str) -> Path:
        return self.path / _PATTERNS[kind].format(**_written(names))


# logrotate's names: a number, or a date with an optional hour (dateext).
_ROTATED = re.compile(r"\.jsonl(?:\.(?P<number>\d{1,6})|-(?P<date>\d{8}(?:\d\d)?))(?:\.gz)?$", re.ASCII)
_TRANSLATION = str.maketrans(_ENCODED)


def _check_name(name: str, what: str, marks: frozenset[str]) -> None:
    if not isinstance(name, str) or not name:
        raise UnsafeNameError(f"a {what} must be a string that is not empty, found {name!r:.200}")
    bad = sorted({mark for mark in name if not (mark.isalnum() or mark in marks)})
    if bad:
        allowed = " ".join(sorted(marks, key="._-+@=/:".index))
        raise UnsafeNameError(
            f"{what} {name!r:.200} has {''.join(bad)!r:.200}: only letters, digits and {allowed} are allowed"
        )
    if name[0] in ".-":
        raise UnsafeNameError(f"{what} {name!r:.200} may not start with {name[0]!r}")
    if unicodedata.normalize("NFC", name) != name:
        raise UnsafeNameError(f"{what} {name!r:.200} is not in Unicode normal form C")


def _written(names: dict[str, str]) -> dict[str, str]:
    """Names in the form that they have in paths, each checked."""
    written = {}
    for field, name in names.items():
        if field == "symbol":
            written[field] = file_name(name)
        elif field == "session":
            written[field] = safe_name(name, "session id")
        elif field == "run":
            written[field] = safe_name(name, "run id")
        elif field == "day":
            if not is_day(name):
                raise UnsafeNameError(f"expected a day as YYYY-MM-DD, found {name!r:.200}")
            written[field] = name
        elif name in _FORMS[field].split("|"):
            written[field] = name
        else:
            allowed = _FORMS[field].replace("|", ", ")
            raise UnsafeNameError(f"there is no {field} {name!r:.200}: expected one of {allowed}")
    return written


def _matcher(pattern: str) -> re.Pattern[str]:
    literal = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
    groups = {name: f"(?P<{name}>{form})" for name, form in _FORMS.items()}
    return re.compile(f"(?:^|/){literal.format(**groups)}$", re.ASCII)


_MATCHERS = {kind: _matcher(pattern) for kind, pattern in _PATTERNS.items()}
_RUN = re.compile("(?:^|/)replay/sessions/(?P<session>[^/]+)/runs/(?P<run>[^/]+)$")


def _place(kind: str, names: dict[str, str]) -> Place | None:
    """The place of a path that matched, or None where a name in it is not one of a symbol, session or day."""
    symbol = None
    if "symbol" in names and (symbol := symbol_of(names["symbol"])) is None:
        return None
    if not all(is_safe_name(names[field]) for field in ("session", "run") if field in names):
        return None
    if "day" in names and not is_day(names["day"]):
        return None
    others = {field: name for field, name in names.items() if field not in ("symbol", "part")}
    return Place(kind, symbol=symbol, part=int(names.get("part", "")[1:] or 1), **others)


def _in_run(place: Place | None, before: str) -> Place | None:
    """The same place, with the run whose files it is among."""
    match = _RUN.search(before)
    return (
        place
        if place is None or match is None
        else replace(place, session=match["session"], run=match["run"])
    )


def _walk(folder: Path, steps: list[str]) -> Iterator[Path]:
    """Existing files along the steps of a pattern; a step with a ``{`` matches any name that is not hidden."""
    step, *rest = steps
    if "{" not in step:
        if rest:
            yield from _walk(folder / step, rest)
        elif (folder / step).is_file():
            yield folder / step
        return
    try:
        with os.scandir(folder) as entries:
            inside = [
                Path(entry) for entry in entries if entry.is_dir() is bool(rest) and entry.name[0] != "."
            ]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in inside:
        if rest:
            yield from _walk(path, rest)
        elif path.is_file():
            yield path
