"""The terminal side of the commands: options, parameters and grids from strings, errors on one line, tables, JSON.

>>> parse_params(["entry_threshold=0.7", "exit_threshold=none"])
{'entry_threshold': 0.7, 'exit_threshold': None}
>>> parse_grid(["tp1_pct=0.1:0.3:3", "allowed_regimes=TREND+RANGE,none"])
{'tp1_pct': [0.1, 0.2, 0.3], 'allowed_regimes': [('TREND', 'RANGE'), None]}
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from replaylab.errors import ConfigError, ReplaylabError

if TYPE_CHECKING:
    from replaylab.lab import Lab


class CommandGroup(TyperGroup):
    """Turns what can go wrong in any command into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        warnings.showwarning = _show_warning
        # Otherwise only the first of several equal warnings would be shown, and none from imported modules.
        warnings.simplefilter("default", UserWarning)
        try:
            return super().invoke(ctx)
        except ReplaylabError as error:
            complain(str(error))
            raise typer.Exit(1) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(130) from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def complain(message: str) -> None:
    """Print an error on stderr."""
    print(f"error: {message}", file=sys.stderr)


def _data_of(ctx: typer.Context, value: Path | None) -> Path:
    """The data root: of the command, else in front of it, else REPLAYLAB_DATA (read there), else ./data."""
    return value or ctx.find_root().params.get("data") or Path("data")


DataOfAll = Annotated[
    Path | None,
    typer.Option("--data", envvar="REPLAYLAB_DATA", metavar="DIR", help="Data root; ./data if not given."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Data root. Without it: REPLAYLAB_DATA in the environment, else ./data.",
        show_default=False,
        callback=_data_of,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def _complete_session(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of sessions for shell completion; no names where the root cannot be read."""
    from replaylab.paths import DataRoot

    chosen = ctx.params.get("data") or ctx.find_root().params.get("data") or Path("data")
    folder = DataRoot(chosen).sessions_dir
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(incomplete))


SessionId = Annotated[
    str,
    typer.Argument(
        metavar="SESSION", help="Session id.", autocompletion=_complete_session, show_default=False
    ),
]
SessionIds = Annotated[
    list[str],
    typer.Argument(
        metavar="SESSION", help="Session id.", autocompletion=_complete_session, show_default=False
    ),
]


def open_lab(data: Path | None, config: Path | None = None) -> Lab:
    """Return the Lab of a data root with the settings of a file; imported here so that --help stays fast."""
    from replaylab.config import Config
    from replaylab.lab import Lab

    return Lab(data or "data", config=None if config is None else Config.load(config))


def open_existing(data: Path | None, config: Path | None = None) -> Lab:
    """Return the Lab of a data root that must be there: about a misspelt one there is nothing to say."""
    lab = open_lab(data, config)
    if not lab.root.path.is_dir():
        what = "is no folder" if lab.root.path.exists() else "does not exist"
        raise ReplaylabError(f"{lab.root}: this data root {what}; give another with --data or REPLAYLAB_DATA")
    return lab


def on_terminal() -> bool:
    """Whether a person watches: progress bars are shown on a terminal and not in a pipe."""
    return sys.stderr.isatty()


def split(values: Sequence[str] | None) -> list[str] | None:
    """Return the items of a repeatable option whose values may also hold commas; None when not given."""
    if not values:
        return None
    return [item.strip() for value in values for item in value.split(",") if item.strip()]


def say(text: str = "") -> None:
    """Print a line for a person."""
    print(text)


def print_json(value: Any) -> None:
    """Print JSON on stdout; what JSON cannot hold (infinity, NaN) becomes null."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS
    sys.stdout.write(orjson.dumps(value, default=_plain, option=options).decode() + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def frame_dicts(frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a polars frame as dicts, times as ISO strings with all their decimals."""
    import polars as pl
    import polars.selectors as cs

    text = frame.with_columns(cs.datetime().dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"))
    rows: list[dict[str, Any]] = pl.DataFrame(text).to_dicts()
    return rows


def print_frame(frame: Any, *, title: str | None = None, limit: int = 50) -> None:
    """Print the first rows of a polars frame as a table."""
    shown = frame.head(limit)
    print_table(shown.columns, shown.rows(), title=title)
    if frame.height > limit:
        say(f"... and {frame.height - limit:,} more rows")


def print_table(columns: Iterable[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a readable table; in a pipe nothing is cut to the width of a screen.

    On a terminal numbers are never broken: headers break at underscores, and the last columns that do not fit are named
    below the table.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, values = list(columns), [tuple(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in values]
    if sys.stdout.isatty():
        # A time folds between date and time of day, not inside either.
        cells = [[re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:)", r"\1 \2", cell) for cell in row] for row in cells]
    console = Console(width=None if sys.stdout.isatty() else 1_000)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    left, kept = console.width, 0
    for place, column in enumerate(columns):
        numbers = all(isinstance(row[place], int | float | None) for row in values)
        width = max((len(row[place]) for row in cells), default=0)
        header = _header(column, width) if sys.stdout.isatty() else column
        # Words may fold, numbers may not.
        least = max(width if numbers else min(width, 12), *(len(part) for part in header.split("\n")))
        if kept and least > left:
            break
        left -= least + 3
        kept += 1
        table.add_column(
            header, justify="right" if numbers else "left", overflow="fold", no_wrap=numbers, min_width=least
        )
    for row in cells:
        table.add_row(*(Text(cell) for cell in row[:kept]))
    console.print(table)
    if kept < len(columns):
        say(f"not shown: {', '.join(columns[kept:])}")


def _header(name: str, width: int) -> str:
    """Return a column's name in lines that break at underscores, where it is wider than its cells."""
    lines = [""]
    for part in name.split("_"):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > max(width, 6):
            lines[-1] += "_"
            lines.append(part)
        else:
            lines[-1] += f"_{part}" if lines[-1] else part
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        help="Trading parameter, such as entry_threshold=0.7 or exit_threshold=none. Repeatable.",
        show_default=False,
    ),
]
Scoring = Annotated[
    list[str] | None,
    typer.Option(
        "--scoring",
        metavar="NAME=VALUE",
        help="Scoring parameter, such as interval_ms=500. Repeatable.",
        show_default=False,
    ),
]
_WORDS: dict[str, Any] = {"none": None, "null": None, "true": True, "false": False}


def _value(written: str, name: str) -> Any:
    """Return a number, None, a bool, or a string; names joined by ``+``, and those of a list of names, are a tuple."""
    written = written.strip()
    if written.casefold() in _WORDS:
        return _WORDS[written.casefold()]
    for kind in (int, float):
        try:
            return kind(written)
        except ValueError:
            continue
    if "+" in written or not written or _holds_names(name):
        return tuple(written.split("+")) if written else ()
    return written


def _holds_names(name: str) -> bool:
    from replaylab.params import TradingParams

    return any(field.name == name and field.kind == "names" for field in TradingParams.declarations())


def _pair(given: str, option: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{option} {given!r}: expected NAME=VALUE, such as entry_threshold=0.7")
    return name.strip(), value


def parse_params(options: Sequence[str] | None, option: str = "--param") -> dict[str, Any]:
    """Return ``NAME=VALUE`` options as a dict of changes; raises ConfigError for another form or a repeated name."""
    return _collect(options, option, lambda name, value: _value(value, name))


def parse_grid(options: Sequence[str] | None) -> dict[str, list[Any]]:
    """Return grid axes: ``NAME=A,B,C`` lists values, ``NAME=FIRST:LAST:COUNT`` spaces them evenly."""
    return _collect(options, "--grid", _axis)


def parse_space(options: Sequence[str] | None) -> dict[str, Any]:
    """Return axes of a space: ``NAME=LOW:HIGH[:STEP]`` is a range, ``NAME=A,B,C`` lists choices."""
    return _collect(options, "--space", _range)


def _collect(
    options: Sequence[str] | None, option: str, convert: Callable[[str, str], Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for given in options or ():
        name, value = _pair(given, option)
        if name in found:
            raise ConfigError(f"{option} {name}: given twice", field=name)
        found[name] = convert(name, value)
    return found


def _range(name: str, values: str) -> Any:
    parts = values.split(":")
    if len(parts) == 1:
        return [_value(item, name) for item in values.split(",")]
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if len(numbers) not in (2, 3):
        raise ConfigError(
            f"--space {name}={values}: expected LOW:HIGH, LOW:HIGH:STEP such as 0.1:1.0:0.05, or choices with commas",
            field=name,
        )
    return numbers


def _axis(name: str, values: str) -> list[Any]:
    parts = values.split(":")
    if len(parts) == 1:
        return [_value(item, name) for item in values.split(",")]
    try:
        first, last = float(parts[0]), float(parts[1])
        count = int(parts[2])
    except (ValueError, IndexError):
        count = 0
    if len(parts) != 3 or count < 1:
        raise ConfigError(
            f"--grid {name}={values}: expected values with commas, or FIRST:LAST:COUNT such as 0.1:1.0:10",
            field=name,
        )
    step = (last - first) / (count - 1) if count > 1 else 0.0
    # Rounded, since 0.1 + 2 * 0.1 would otherwise be shown as 0.30000000000000004.
    return [round(first + step * place, 12) for place in range(count)]
