"""Texts of the command line to parameters and grids.

>>> parse_params(["entry_threshold=0.7", "exit_threshold=none"])
{'entry_threshold': 0.7, 'exit_threshold': None}
>>> parse_grid(["tp1_pct=0.1:0.3:3", "allowed_regimes=TREND+RANGE,none"])
{'tp1_pct': [0.1, 0.2, 0.3], 'allowed_regimes': [('TREND', 'RANGE'), None]}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaylab.errors import ConfigError

if TYPE_CHECKING:
    from replaylab.params import ScoringParams, TradingParams

__all__ = ["Param", "Scoring", "parse_grid", "parse_params", "scoring_params", "trading_params"]

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


def _value(text: str) -> Any:
    """A number, none, true, false, or a name; names joined by ``+`` are a list of names."""
    text = text.strip()
    if text.casefold() in _WORDS:
        return _WORDS[text.casefold()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return tuple(text.split("+")) if text else ()


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{option} {text!r}: expected NAME=VALUE, such as entry_threshold=0.7")
    return name.strip(), value


def parse_params(texts: Sequence[str] | None, option: str = "--param") -> dict[str, Any]:
    """Return ``NAME=VALUE`` texts as a dict; raises ConfigError for another form or a name given twice."""
    return _collect(texts, option, lambda _, value: _value(value))


def parse_grid(texts: Sequence[str] | None) -> dict[str, list[Any]]:
    """Return grid axes: ``NAME=A,B,C`` lists values, ``NAME=FIRST:LAST:COUNT`` spaces them evenly."""
    return _collect(texts, "--grid", _axis)


def _collect(texts: Sequence[str] | None, option: str, convert: Callable[[str, str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts or ():
        name, value = _pair(text, option)
        if name in found:
            raise ConfigError(f"{option} {name}: given twice", field=name)
        found[name] = convert(name, value)
    return found


def _axis(name: str, text: str) -> list[Any]:
    parts = text.split(":")
    if len(parts) == 1:
        return [_value(item) for item in text.split(",")]
    try:
        first, last = float(parts[0]), float(parts[1])
        count = int(parts[2])
    except (ValueError, IndexError):
        count = 0
    if len(parts) != 3 or count < 1:
        raise ConfigError(
            f"--grid {name}={text}: expected values with commas, or FIRST:LAST:COUNT such as 0.1:1.0:10",
            field=name,
        )
    step = (last - first) / (count - 1) if count > 1 else 0.0
    # Rounded, since 0.1 + 2 * 0.1 would otherwise be shown as 0.30000000000000004.
    return [round(first + step * place, 12) for place in range(count)]


def trading_params(texts: Sequence[str] | None) -> TradingParams:
    """Return TradingParams of ``--param`` texts; raises ConfigError that names the field."""
    from replaylab.params import TradingParams

    return TradingParams.from_dict(parse_params(texts))


def scoring_params(texts: Sequence[str] | None) -> ScoringParams | None:
    """Return ScoringParams of ``--scoring`` texts, or None where none are given."""
    from replaylab.params import ScoringParams

    return ScoringParams.from_dict(parse_params(texts, "--scoring")) if texts else None
