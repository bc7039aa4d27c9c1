"""One model, several implementations: each gives the results of the oracle, trade for trade and field for field.

Where an implementation differs, ``python -m tests.parity.soak --NAME`` prints the shrunken case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from replaylab.errors import PriceError, ReplaylabError
from tests import oracle
from tests.parity.contenders import CONTENDERS, case_for, differences, oracle_outcome
from tests.strategies import inputs_of, make_case, make_session, random_params, refusal

CASES = 500
MANY = 20_000
# What has to decide something in the compared cases: reasons, ways to fill, fates of orders, and every other rule.
OF_VERSION_1 = {
    *(set(oracle.REASONS) - {"DATA_GAP"}),
    "TP1 and TP2 at one event",
    "break-even: not tighter",
    "break-even: off",
    "cancelled by the session's end: not arrived",
    "closed at its own entry",
    "day: loss recovered",
    "entry on the day after a lost day",
    "entry while another symbol is not flat",
    "entry: market",
    "fill: print",
    "force close while pending",
    "latency: entry not yet due",
    "latency: exit not yet due",
    "limit: touch",
    "limit: touched exactly",
    "no entry: blocked",
    "no entry: cooldown",
    "no entry: direction",
    "no entry: max_daily_loss_usd",
    "no entry: max_open_positions",
    "no entry: max_trades_per_day",
    "no entry: pending",
    "no entry: regime",
    "risk update for every symbol",
    "size: from risk",
    "size: from risk, capped",
}
OF_VERSION_2 = {
    *OF_VERSION_1,
    "DATA_GAP",
    "TP1: its quantity rounds to nothing or everything",
    "account: daily loss already reached",
    "book: crossed and usable",
    "book: more than 25 levels",
    "book: too old",
    "cancelled by a hole: not arrived",
    "cancelled by a hole: resting",
    "cancelled by the session's end: resting",
    "carried: part reached the daily loss",
    "carried: part realised",
    "closing by a stop",
    "closing when DATA_GAP",
    "closing when SESSION_END",
    "entry: expired",
    "entry: limit",
    "entry: limit, stopped at its own event",
    "fill: book",
    "fill: print for lack of a usable book",
    "fill: quote",
    "fill: the book was the worse price",
    "fill: the print was the worse price",
    "fill: thin",
    "funding after TP1",
    "funding at the last price",
    "funding at the mark price",
    "funding before DATA_GAP",
    "funding before SESSION_END",
    "funding while closing",
    "hole",
    "latency: stop not yet due",
    "limit entry: reference is the last price",
    "limit entry: reference is the quote",
    "limit: queue used up",
    "limit: through",
    "limit: touched, not through",
    "no entry: carried",
    "no entry: max_open_positions, by a carried position",
    "no entry: no reference price",
    "queue: a trade of the order's own side does not count",
    "queue: a trade without a side counts",
    "queue: an unusable qty adds nothing",
    "queue: at a visible level",
    "queue: inside the spread",
    "queue: no usable book at arrival",
    "queue: not visible at arrival",
    "rejected: minimum notional",
    "rejected: post-only against the print",
    "rejected: post-only against the quote",
    "rejected: price",
    "rejected: quantity 0",
}


def compare(name: str, seeds: Iterable[int]) -> None:
    """Compare an implementation with the oracle, print what was reached, and fail where a rule never decided."""
    contender = CONTENDERS[name]
    seen: Counter[str] = Counter()
    trades = refused = 0
    for seed in seeds:
        session, params = case_for(contender, *make_case(seed))
        expected = oracle_outcome(session, params)
        try:
            found = contender.run(session, params)
        except PriceError as error:
            # Kernels refuse the signals of a symbol without prices; in the event-driven system prices may come later.
            if name == "system" or inputs_of(session).prices.get(str(error.symbol)):
                raise
            refused += 1
            continue
        wrong = differences(expected, found, contender.version)
        assert not wrong, f"seed {seed}: {wrong[0]}"
        seen.update(expected.seen)
        trades += len(expected.trades or [])
    print(
        f"{name}: version {contender.version} of the model, {trades} trades, {refused} sessions without prices refused"
    )
    for sentence, count in sorted(seen.items()):
        print(f"{count:9d} {sentence}")
    every = OF_VERSION_2 if contender.version == 2 else OF_VERSION_1
    assert {sentence for sentence in every if not seen[sentence]} == set()


@pytest.mark.parametrize("name", CONTENDERS)
def test_an_implementation_gives_the_results_of_the_oracle(name: str) -> None:
    compare(name, range(CASES))


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CONTENDERS)
def test_an_implementation_gives_the_results_of_the_oracle_on_many_cases(name: str) -> None:
    compare(name, range(CASES, CASES + MANY))


@pytest.mark.parametrize("name", CONTENDERS)
def test_what_a_session_cannot_support_is_refused_with_the_symbol(name: str) -> None:
    """ "quote", "book" and "queue" without what they need, for some symbol."""
    contender = CONTENDERS[name]
    if contender.version == 1:
        pytest.skip("version 1 of the model refuses nothing for a session")
    refused = 0
    for seed in range(150):
        session, params = make_session(seed, 60, 1 + seed % 3), random_params(seed)
        if refusal(session, params) is None:
            continue
        refused += 1
        with pytest.raises(ReplaylabError, match=r"AAA|BBB|CCC"):
            contender.run(session, params)
    assert refused > 20


def test_the_oracle_reaches_every_sentence() -> None:
    """The cases above contain every reason, way to fill, fate of an order and other rule of the page."""
    seen: Counter[str] = Counter()
    for seed in range(CASES):
        seen.update(oracle_outcome(*make_case(seed)).seen)
    assert {sentence for sentence in OF_VERSION_2 if not seen[sentence]} == set()
    unknown = {sentence for sentence, count in seen.items() if count} - OF_VERSION_2
    assert unknown == set()
