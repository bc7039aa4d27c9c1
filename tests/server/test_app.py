"""What the server starts and stops beside its handlers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from replaylab.server.app import Replaylab


def daily_jobs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "replaylab-retention"]


def test_the_server_cleans_up_daily_where_the_configuration_says_so(tmp_path: Path) -> None:
    """`dailyAt` starts the job with the server, and the job ends with it."""
    config = tmp_path / "replaylab.toml"
    config.write_text('[retention]\ndailyAt = "03:30"\n')
    app = Replaylab(data_root=str(tmp_path / "data"), config_path=str(config))
    app.initialize_settings()
    assert len(daily_jobs()) == 1
    asyncio.run(app.stop_extension())
    assert daily_jobs() == []


def test_without_a_configuration_nothing_is_ever_cleaned_up(tmp_path: Path) -> None:
    app = Replaylab(data_root=str(tmp_path / "data"))
    app.initialize_settings()
    assert daily_jobs() == []
    asyncio.run(app.stop_extension())
