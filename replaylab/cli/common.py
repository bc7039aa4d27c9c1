"""What the commands share: options, errors on one line, tables and JSON."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from replaylab.errors import ReplaylabError

if TYPE_CHECKING:
    from replaylab.lab import Lab

__all__ = [
    "CommandGroup",
    "Data",
    "DataOfAll",
    "Json",
    "SessionId",
    "complain",
    "frame_dicts",
    "on_terminal",
    "open_existing",
    "open_lab",
    "print_frame",
    "print_json",
    "print_table",
    "say",
    "split",
    "write_whole",
]


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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place and moved there when it is complete: Ctrl-C leaves no half."""
    part = path.with_name(f".part-{path.name}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
    """Return the rows of a polars frame as dicts, times as ISO texts with all their decimals."""
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
    """Print a readable table; in a pipe nothing is cut to the width of a screen."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [tuple(row) for row in rows]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        numbers = all(isinstance(row[place], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 1_000).print(table)


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
