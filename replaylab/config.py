"""Configuration: immutable, checked when made; an unknown key is refused with the closest known one."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from replaylab.errors import ConfigError
from replaylab.params import ScoringParams, Settings, TradingParams

__all__ = ["Config", "LoggingConfig", "RetentionConfig"]


Days = Annotated[int, Meta(ge=0, le=36_500)]


class RetentionConfig(Settings, kw_only=True, frozen=True):
    """How long files are kept (the specification's ``CONFIG.retention``): whole days, and hours for market data.

    >>> RetentionConfig(events_days=3).to_dict()["eventsDays"]
    3

    ``archive=True`` compacts day files to Parquet under ``archive/`` instead of deleting them. ``max_total_bytes``
    and ``min_free_bytes`` delete the oldest day files first until the limit holds; None = no such limit.
    ``daily_at`` ("HH:MM", UTC) switches the daily job on.
    """

    trades_log_days: Days = 30
    orders_log_days: Days = 30
    events_days: Days = 7
    replay_sessions_days: Days = 30
    raw_market_data_hours: Annotated[int, Meta(ge=0, le=36_500 * 24)] = 24
    archive: bool = False
    max_total_bytes: Annotated[int | None, Meta(ge=0)] = None
    min_free_bytes: Annotated[int | None, Meta(ge=0)] = None
    daily_at: str | None = None

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        if self.daily_at is not None:
            hours, _, minutes = str(self.daily_at).partition(":")
            if not (
                len(self.daily_at) == 5
                and hours.isdecimal()
                and minutes.isdecimal()
                and int(hours) < 24
                and int(minutes) < 60
            ):
                self._fail("daily_at", 'a UTC time of day such as "03:30", or None')


class LoggingConfig(Settings, kw_only=True, frozen=True):
    """What an acknowledged line survives, and how lines wait.

    ``durability="flush"``: a crash of the process. ``"fsync"``: a crash of the machine; lines that wait are
    synced together, ``max_delay_ms`` apart at most. ``queue=True`` writes from a thread at ``"flush"`` too.
    A full queue of ``queue_size`` lines makes the caller wait (``overflow="wait"``) or drops lines and counts them.
    ``redact``: names of keys whose values in ``extra`` are replaced before writing: keys that end with one of them,
    in any case. A ``token`` is a coin, not a secret. Replaced values are counted in health.
    """

    durability: Literal["flush", "fsync"] = "flush"
    queue: bool = False
    queue_size: Annotated[int, Meta(ge=1)] = 65_536
    max_delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    overflow: Literal["wait", "drop"] = "wait"
    redact: tuple[str, ...] = (
        *(
            "apiKey",
            "apiSecret",
            "secret",
            "password",
            "passwd",
            "pwd",
            "passphrase",
            "privateKey",
            "accessKey",
        ),
        *("listenKey", "accessToken", "refreshToken", "sessionToken", "authToken", "jwt", "authorization"),
        *("cookie", "signature", "X-BAPI-SIGN", "apiSign", "accessSign", "mnemonic", "seedPhrase"),
    )


class Config(Settings, kw_only=True, frozen=True):
    """All settings of a data root.

    >>> Config(run_mode="REPLAY", retention={"tradesLogDays": 1}).retention.trades_log_days
    1

    ``run_mode="REPLAY"`` forbids everything that would touch the real market. ``cache_dir`` holds what can be
    computed again (default: ``$XDG_CACHE_HOME/replaylab``), so that read-only data roots work.
    Nested settings may be given as plain dicts. Raises ConfigError.
    """

    run_mode: Literal["LIVE", "REPLAY"] = "LIVE"
    data_root: str | None = None
    cache_dir: str | None = None
    logging: LoggingConfig = LoggingConfig()
    retention: RetentionConfig = RetentionConfig()
    trading: TradingParams = TradingParams()
    scoring: ScoringParams = ScoringParams()

    def __post_init__(self) -> None:
        for field in ("data_root", "cache_dir"):
            value = getattr(self, field)
            if isinstance(value, os.PathLike):
                msgspec.structs.force_setattr(self, field, os.fspath(value))
        Settings.__post_init__(self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Return the configuration in a TOML or JSON file; raises ConfigError that names the file."""
        file = Path(path)
        try:
            text = file.read_bytes()
            data: Any = orjson.loads(text) if file.suffix == ".json" else tomllib.loads(text.decode())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: cannot be read as configuration: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: expected an object of settings, found {type(data).__name__}")
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}", field=error.field) from None

    @property
    def cache_path(self) -> Path:
        """The folder for caches; not made by this call."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "replaylab"
