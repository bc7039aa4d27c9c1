"""What JupyterLab offers: every public name by Tab, every parameter by ``?``. Jedi, which JupyterLab asks, is asked."""

from __future__ import annotations

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

import jedi
import pytest

# The names of the public interface, by what is before the dot. Each is reached by Tab.
NAMES: dict[str, str] = {
    "replaylab": "Config Lab ReplayEngine ScoringParams TradingParams buildReplaySession build_replay_session",
    "replaylab.Lab": "backtest build_replay_session build_sessions control daily_summary engine events export_features "
    "features fidelity health import_history labels logger market_trades metrics order_book orders panel rejects "
    "run_retention run_sim sample save_session session sessions snapshot sweep trades what_if",
    "replaylab.logging.Logger": "append_replay_event close flush log_order log_state_event log_trade "
    "write_execution_snapshot write_health_snapshot write_replay_manifest write_risk_snapshot write_tpsl_snapshot",
    "replaylab.ReplayEngine": "get_status last_run load_session pause resume run_session seek set_speed start_session "
    "step stop subscribe sweep wait",
    "replaylab.replay.ReplayControl": "pause resume seek set_speed status step stop",
    "replaylab.sessions.SessionStore": "get_session list_sessions save_session",
    "replaylab.sweep.SweepResult": "best frame heatmap load robustness save trades",
    "replaylab.sweep.Backtest": "equity trades",
    "replaylab.plots": "density equity excursions exit_reasons fidelity heatmap overfitting parallel_coordinates "
    "price_with_trades scores slices walk_forward",
    "replaylab.ml": "CombinatorialPurgedCV PurgedKFold WalkForward export_features features labels meta_labels",
    "replaylab.TradingParams": "replace to_dict",
}


def resolve(dotted: str) -> Any:
    place, rest = dotted, []
    while True:
        try:
            value: Any = importlib.import_module(place)
            break
        except ModuleNotFoundError:
            place, _, last = place.rpartition(".")
            rest.insert(0, last)
    for name in rest:
        value = getattr(value, name)
    return value


def offered(place: str) -> set[str]:
    """Names that Jedi offers after the dot: of a module in a running notebook, of an object by its type."""
    if isinstance(resolve(place), ModuleType):
        found = jedi.Interpreter("thing.", [{"thing": resolve(place)}]).complete()
    else:
        home, _, kind = place.rpartition(".")
        found = jedi.Script(f"from {home} import {kind}\ndef use(thing: {kind}):\n    thing.").complete()
    return {one.name for one in found if not one.name.startswith("_")}


@pytest.mark.parametrize("place", NAMES)
def test_every_public_name_is_offered_by_tab(place: str) -> None:
    assert set(NAMES[place].split()) <= offered(place)


@pytest.mark.parametrize("place", ["replaylab", "replaylab.plots", "replaylab.ml", "replaylab.features"])
def test_tab_offers_public_names_only(place: str) -> None:
    """No imports, no submodules, also after every name was used."""
    module = importlib.import_module(place)
    for name in module.__all__:
        getattr(module, name)
    assert offered(place) == set(module.__all__) - {"__version__"}


@pytest.mark.parametrize("place", [place for place in NAMES if inspect.isclass(resolve(place))])
def test_every_parameter_is_shown(place: str) -> None:
    """The signature that Jedi shows at an open bracket has every parameter of the method, with no ``**options``."""
    home, _, kind = place.rpartition(".")
    for name in NAMES[place].split():
        method = inspect.getattr_static(resolve(place), name, None)
        if not inspect.isfunction(method):
            continue
        code = f"from {home} import {kind}\ndef use(thing: {kind}):\n    thing.{name}("
        shown = [one.to_string() for one in jedi.Script(code).get_signatures()[0].params]
        wanted = [one for one in inspect.signature(method).parameters if one != "self"]
        assert [re.split(r"[:=]", one)[0].lstrip("*") for one in shown if one not in ("*", "/")] == wanted, (
            f"{place}.{name}"
        )
        assert not any(one.startswith("**") for one in shown) or name == "replace"


def test_signatures_of_lazy_names_come_from_the_stub_files() -> None:
    """In an editor, where nothing is run: a class, a method of a new object, and a function of a lazy package."""
    for code, parameter in (
        ("from replaylab import Lab\nLab(", "frame"),
        ("from replaylab import Lab\nLab('data').sweep('session', {}, ", "table_memory"),
        ("from replaylab import plots\nplots.heatmap(", "value"),
        ("import replaylab\nreplaylab.buildReplaySession(", "max_events"),
    ):
        assert parameter in {one.name for one in jedi.Script(code).get_signatures()[0].params}
