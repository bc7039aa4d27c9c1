"""Compare implementations of the trading model with the oracle on many random cases, and print shrunken differences.

::

    python -m tests.parity.soak --system --loop --tables --index --cases 5000 --seed 1
    python -m tests.parity.soak --system --set limit_fill=queue max_gap_s=null --without funding carried
    python -m tests.parity.soak --loop --seed 53 --cases 1 --version 2

``--set`` fixes parameters, ``--without`` leaves parts of the sessions out: a new part of the model is best developed
alone. ``--version`` replaces the version that ``tests.parity.contenders`` gives an implementation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from replaylab.params import TradingParams
from tests.parity.contenders import CONTENDERS, Contender, case_for, differences, oracle_outcome
from tests.strategies import RandomSession, allow, make_case, refusal

PARTS = ("funding", "carried", "instruments", "books", "account", "risk", "unusable")
Case = tuple[RandomSession, TradingParams]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    chosen = [c for c in CONTENDERS.values() if getattr(options, c.name)] or list(CONTENDERS.values())
    if options.version:
        chosen = [dataclasses.replace(c, version=options.version) for c in chosen]
    fixed = {name: json.loads(value) for name, value in (text.split("=", 1) for text in options.set)}
    found: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    start = time.monotonic()
    for seed in range(options.seed, options.seed + options.cases):
        session, params = make_case(seed)
        for part in options.without:
            session = without(session, part)
        params = allow(session, params.replace(**fixed))
        for contender in chosen:
            if found[contender.name] >= options.most:
                continue
            case = case_for(contender, session, params)
            wrong = problem(contender, case)
            if is_refusal(wrong, session):
                refused[contender.name] += 1
            elif wrong:
                found[contender.name] += 1
                show(contender, seed, case if options.whole else shrink(contender, case))
        seen.update(oracle_outcome(session, params).seen)
    print(f"{options.cases} cases from seed {options.seed} in {time.monotonic() - start:.0f} s")
    for contender in chosen:
        print(
            f"  {contender.name} (version {contender.version} of the model): {found[contender.name]} differences"
            + (f", {refused[contender.name]} refused: no prices" if refused[contender.name] else "")
        )
    if options.seen:
        for name, count in sorted(seen.items()):
            print(f"{count:9d} {name}")
    return 1 if sum(found.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.parity.soak", description=__doc__.splitlines()[0])
    for contender in CONTENDERS.values():
        parser.add_argument(f"--{contender.name}", action="store_true", help=f"compare {contender.name}")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="the first case's seed; the others follow")
    parser.add_argument("--most", type=int, default=5, help="differences to show of one implementation")
    parser.add_argument("--version", type=int, choices=(1, 2), help="compare as though it had this version")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="parameters of every case")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=PARTS, help="parts of sessions to leave out"
    )
    parser.add_argument("--whole", action="store_true", help="do not shrink")
    parser.add_argument("--seen", action="store_true", help="print how often each sentence decided something")
    return parser


def without(session: RandomSession, part: str) -> RandomSession:
    """The session without FUNDING events, carried state, instruments, books, the account's day, or risk updates."""
    state = {**session.initial_state}
    keep: Callable[[Any], bool] = lambda event: True  # noqa: E731
    if part == "funding":
        keep = lambda event: event[1] != "FUNDING"  # noqa: E731
    elif part == "risk":
        keep = lambda event: event[1] != "RISK_UPDATE"  # noqa: E731
    elif part == "unusable":
        keep = lambda event: event[2] != "" and (event[2] is not None or event[1] == "RISK_UPDATE")  # noqa: E731
    elif part == "books":
        priced = {e[2] for e in session.raw if e[1] == "MARKET_TRADE"}
        keep = lambda event: event[1] != "MARKET_BOOK" or event[2] not in priced  # noqa: E731
    elif part == "account":
        state.pop("account", None)
    if part in ("carried", "books") and "symbols" in state:
        gone = {"carried": None, "lastExitAt": None} if part == "carried" else {"book": None}
        state["symbols"] = {name: {**values, **gone} for name, values in state["symbols"].items()}
    return dataclasses.replace(
        session,
        raw=[event for event in session.raw if keep(event)],
        initial_state=state,
        instruments={} if part == "instruments" else session.instruments,
        price_source="auto" if part == "books" else session.price_source,
    )


def problem(contender: Contender, case: Case) -> list[str]:
    """How the implementation differs from the oracle on a case, an exception included; empty where it does not."""
    session, params = case
    expected = oracle_outcome(session, params)
    try:
        found = contender.run(session, params)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return differences(expected, found, contender.version)


def is_refusal(wrong: list[str], session: RandomSession) -> bool:
    """Whether a case was refused for a symbol that has scores and no price, which the contract asks for."""
    if not wrong or not wrong[0].startswith("PriceError: no prices in this session for "):
        return False
    symbol = wrong[0].split(" for ", 1)[1].split(".", 1)[0]
    return not any(
        event[2] == symbol
        and (
            (
                event[1] == "MARKET_TRADE"
                and isinstance(event[3].get("price"), int | float)
                and event[3]["price"] > 0
            )
            or (event[1] == "MARKET_BOOK" and event[3].get("bids") and event[3].get("asks"))
        )
        for event in session.raw
    )


# -- shrinking ---------------------------------------------------------------------------------------------------------


def shrink(contender: Contender, case: Case, budget_s: float = 20.0) -> Case:
    """A smaller case with a difference of the same kind: fewer events, default parameters, less state."""
    kind = _kind(problem(contender, case))
    until = time.monotonic() + budget_s

    def still(smaller: Case) -> bool:
        session, params = smaller
        try:
            return refusal(session, params) is None and _kind(problem(contender, smaller)) == kind
        except Exception:  # the oracle itself needs what was removed
            return False

    changed = True
    while changed and time.monotonic() < until:
        changed = False
        for smaller in _smaller(case):
            if time.monotonic() >= until:
                break
            other = case_for(contender, *smaller(case))
            if other != case and still(other):
                case, changed = other, True
    return case


def _kind(wrong: list[str]) -> str:
    """An exception's type and first words, or the kind of difference."""
    return " ".join(wrong[0].split()[:2]) if wrong and "Error" in wrong[0].split()[0] else str(bool(wrong))


def _smaller(case: Case) -> Iterator[Callable[[Case], Case]]:
    """Ways to make a case smaller; each is applied to the case as it then is."""
    session, params = case
    size = len(session.raw)
    step = max(1, size // 2)
    while True:
        for first in range(size - 1, -1, -step):
            yield lambda c, first=first, step=step: (_cut(c[0], max(0, first - step + 1), first + 1), c[1])
        if step == 1:
            break
        step = max(1, step // 3)
    defaults = TradingParams()
    for name in params.__struct_fields__:
        yield lambda c, name=name: (c[0], _replaced(c[1], name, getattr(defaults, name)))
    for part in (*PARTS[1:], "funding"):
        yield lambda c, part=part: (without(c[0], part), c[1])
    yield lambda c: (dataclasses.replace(c[0], initial_state={}), c[1])
    yield lambda c: (dataclasses.replace(c[0], price_source="auto"), c[1])


def _replaced(params: TradingParams, name: str, value: Any) -> TradingParams:
    try:
        return params.replace(**{name: value})
    except ValueError:
        return params


def _cut(session: RandomSession, first: int, last: int) -> RandomSession:
    return dataclasses.replace(session, raw=session.raw[:first] + session.raw[last:])


# -- printing ----------------------------------------------------------------------------------------------------------


def show(contender: Contender, seed: int, case: Case) -> None:
    """Print a case so that it can be read, and worked out by hand."""
    session, params = case
    print(f"\n=== {contender.name}, seed {seed} ===")
    for sentence in problem(contender, case)[:4]:
        print("  " + sentence)
    defaults = TradingParams()
    changed = {
        n: getattr(params, n) for n in params.__struct_fields__ if getattr(params, n) != getattr(defaults, n)
    }
    print("  parameters:", ", ".join(f"{name}={value!r}" for name, value in changed.items()) or "defaults")
    print("  price_source:", session.price_source)
    if session.initial_state:
        print("  initial_state:", json.dumps(session.initial_state))
    for name, instrument in session.instruments.items():
        values = {key: value for key, value in instrument.items() if value is not None}
        print(f"  instrument {name}: {json.dumps(values)}")
    start = session.raw[0][0] if session.raw else 0
    print(f"  events, in seconds after {start} ns:")
    for index, (ts, kind, symbol, payload) in enumerate(session.raw):
        print(f"  {index:4d} {(ts - start) / 1e9:16.9f} {kind:15s} {symbol!r:6} {json.dumps(payload)}")
    expected = oracle_outcome(session, params)
    print("  expected:", expected.counts, expected.unusable)
    trades = expected.trades or []
    for trade in trades[-3:]:
        print("   ", json.dumps(trade))
    if len(trades) > 3:
        print(f"    (and {len(trades) - 3} before)")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
