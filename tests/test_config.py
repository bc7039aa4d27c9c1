"""Configuration: immutable, from code or a file, and a wrong setting is named with the closest right one."""

from __future__ import annotations

import pytest

from replaylab.config import Config, LoggingConfig, RetentionConfig
from replaylab.errors import ConfigError
from replaylab.params import TradingParams


def test_the_defaults_are_the_specifications():
    retention = RetentionConfig().to_dict()
    assert {name: retention[name] for name in list(retention)[:5]} == {
        "tradesLogDays": 30,
        "ordersLogDays": 30,
        "eventsDays": 7,
        "replaySessionsDays": 30,
        "rawMarketDataHours": 24,
    }
    assert RetentionConfig().daily_at is None, "scheduled retention is off until configured"
    assert Config().run_mode == "LIVE"
    assert LoggingConfig().durability == "flush"


def test_nested_settings_may_be_plain_dicts_in_either_spelling():
    config = Config(retention={"tradesLogDays": 1}, trading={"sl_pct": 0.5}, logging={"durability": "fsync"})
    assert config.retention.trades_log_days == 1
    assert config.trading == TradingParams(sl_pct=0.5)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run_mod": "LIVE"}, "Did you mean 'run_mode'"),
        ({"run_mode": "SIM"}, '"LIVE" or "REPLAY"'),
        ({"retention": {"tradesLogDay": 1}}, "Did you mean 'trades_log_days'"),
        ({"retention": {"tradesLogDays": -1}}, "≥ 0"),
        ({"retention": {"tradesLogDays": 1.5}}, "a whole number"),
        ({"retention": {"eventsDays": 36_501}}, "≤ 36500"),
        ({"retention": {"rawMarketDataHours": 876_001}}, "≤ 876000"),
        ({"retention": {"dailyAt": "25:00"}}, "a UTC time of day"),
        ({"retention": {"dailyAt": "3:30"}}, "a UTC time of day"),
        ({"retention": {"archive": "yes"}}, "True or False"),
        ({"retention": 5}, "a RetentionConfig or a dict"),
        ({"logging": {"durability": "sync"}}, '"flush" or "fsync"'),
        ({"logging": {"overflow": "block"}}, '"wait" or "drop"'),
        ({"logging": {"queueSize": 0}}, "≥ 1"),
        ({"logging": {"maxDelayMs": -1}}, "≥ 0"),
        ({"logging": {"redact": "apiKey"}}, "a list of names"),
        ({"trading": {"slPct": -1}}, "≥ 0"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(settings)
    assert message in str(caught.value)
    assert caught.value.field


def test_a_file_of_settings(tmp_path):
    file = tmp_path / "replaylab.toml"
    file.write_text('runMode = "REPLAY"\n[retention]\ntradesLogDays = 1\n[logging]\nredact = ["pin"]\n')
    config = Config.load(file)
    assert (config.run_mode, config.retention.trades_log_days) == ("REPLAY", 1)
    assert config.logging.redact == ("pin",)
    file = tmp_path / "replaylab.json"
    file.write_text('{"trading": {"slPct": 0.5}}')
    assert Config.load(file).trading.sl_pct == 0.5


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", "x ="), ("a.json", "{"), ("a.json", "[]"), ("a.toml", "x = 1"), ("b.toml", None)],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, text):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=name):
        Config.load(file)


def test_configuration_is_immutable():
    with pytest.raises(AttributeError):
        Config().run_mode = "REPLAY"


def test_caches_go_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Config().cache_path == tmp_path / "replaylab"
    assert Config(cache_dir=tmp_path / "mine").cache_path == tmp_path / "mine"
