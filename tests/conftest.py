"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of recorded market data (binance-capture/, binance-trades/, bybit/); skips where it is not."""
    named = os.environ.get("REPLAYLAB_REAL_DATA")
    if not named:
        pytest.skip("REPLAYLAB_REAL_DATA is not set: no recorded market data on this machine")
    folder = Path(named)
    folder = folder / "real" if (folder / "real").is_dir() else folder
    if not folder.is_dir():
        pytest.fail(f"REPLAYLAB_REAL_DATA names {folder}, which is not a folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never read or fill the caches of the person who runs them."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
