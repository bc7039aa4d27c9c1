"""The parameter fields of the panel, filled and read as plain objects."""

from __future__ import annotations

import pytest

from replaylab import TradingParams
from replaylab.notebook.controls import RunParams
from tests.strategies import random_params


def test_every_declared_parameter_has_a_field_with_its_help() -> None:
    form = RunParams()
    assert set(form.fields) == set(TradingParams.__struct_fields__)
    for one in TradingParams.declarations():
        assert form.fields[one.name].tooltip == one.help


@pytest.mark.parametrize("seed", range(40))
def test_what_is_shown_is_what_runs(seed: int) -> None:
    """Any parameters, shown against any base, come back exactly: no digit is lost, and only changes are sent."""
    base, used = random_params(seed), random_params(seed + 1_000)
    form = RunParams()
    form.offer(base, "recorded", used)
    changes = form.changes()
    assert changes is not None
    assert base.with_changes(changes) == used
    assert set(changes) == {name for name in form.fields if getattr(base, name) != getattr(used, name)}
    form.reset.click()
    assert form.changes() == {}


def test_an_empty_list_of_regimes_is_not_the_same_as_any_regime() -> None:
    """None allows every regime, an empty list none."""
    form = RunParams()
    form.fields["allowed_regimes"].value = "none"
    assert form.changes() == {"allowed_regimes": ()}
    form.fields["allowed_regimes"].value = "TREND, RANGE"
    assert form.changes() == {"allowed_regimes": ("TREND", "RANGE")}
    form.fields["allowed_regimes"].value = "off"
    assert form.changes() == {}
