"""Secrets never reach the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replaylab.config import LoggingConfig
from replaylab.logging import Logger
from replaylab.logging.fast_check import REDACTED, Redactor
from replaylab.records import ReplayEvent, StateEvent, TradeLogRecord
from tests.logging import sample_records as sample

SECRETS = {
    "score": 0.5,
    "apiKey": "k-1",
    "nested": {"list": [{"Bybit_API-Key": "k-2"}, 3], "accessToken": {"whole": "k-3"}},
    "PASSWORD": ["k-4"],
}


def disk_text(folder) -> str:
    return "".join(path.read_text() for path in folder.rglob("*.json*"))


def test_secret_values_in_extra_are_replaced_and_all_else_is_kept(tmp_path):
    event = sample.state_event(extra=SECRETS)
    with Logger(tmp_path) as logger:
        logger.log_state_event("BTCUSDT", event)
        logger.log_state_event("BTCUSDT", StateEvent.from_dict(event))
    assert "k-" not in disk_text(tmp_path)
    for line in (tmp_path / "events/BTCUSDT.jsonl").read_text().splitlines():
        assert json.loads(line) == {
            **event,
            "extra": {
                "score": 0.5,
                "apiKey": REDACTED,
                "nested": {"list": [{"Bybit_API-Key": REDACTED}, 3], "accessToken": REDACTED},
                "PASSWORD": REDACTED,
            },
        }
    assert event["extra"]["apiKey"] == "k-1", "the caller's own dict is left alone"


def test_secrets_in_unknown_fields_payloads_and_snapshots_are_replaced(tmp_path):
    at = "2025-11-18T10:00:00.000Z"
    event = {"timestamp": at, "type": "X", "symbol": None, "payload": {"auth": {"privateKey": "k-1"}}}
    with Logger(tmp_path) as logger:
        logger.log_trade(sample.trade(apiKey="k-2"))
        logger.log_trade(TradeLogRecord.from_dict(sample.trade(apiKey="k-2")))
        logger.append_replay_event("s1", event)
        logger.append_replay_event("s1", ReplayEvent.from_dict(event))
        risk = sample.snapshots()["risk"]
        logger.write_risk_snapshot({**risk, "account": {"equityUsd": 1, "secret": "k-3"}})
    assert "k-" not in disk_text(tmp_path)
    assert disk_text(tmp_path).count(REDACTED) == 5


@pytest.mark.parametrize(
    "key",
    [
        "apiKey",
        "API_KEY",
        "api-key",
        "x.api.key",
        "apiKeys",
        "API_SECRET_KEY",
        "clientSecret",
        "access token",
        "Passphrase",
        *(
            "listenKey",
            "LISTEN_KEY",
            "accessKey",
            "AWS_ACCESS_KEY",
            "signature",
            "X-BAPI-SIGN",
            "x_bapi_sign",
        ),
        *(
            "cookie",
            "Set-Cookie",
            "cookies",
            "jwt",
            "JWT",
            "mnemonic",
            "wallet_mnemonic",
            "pwd",
            "PWD",
            "db.pwd",
        ),
        *("OK-ACCESS-SIGN", "KC-API-SIGN", "refresh_token", "sessionToken", "seed phrase", "passwd"),
    ],
)
def test_keys_named_like_a_secret(key):
    redactor = Redactor(LoggingConfig().redact)
    assert redactor.has_secret({"a": [{"b": {key: 1}}]})
    assert redactor.redact([{key: 1}]) == [{key: REDACTED}]


@pytest.mark.parametrize(
    "key",
    [
        *("token", "tokenSymbol", "tokens", "key", "secretary", "passwords_seen", "score", ""),
        *(
            "seed",
            "sign",
            "design",
            "signal",
            "signatures_checked",
            "sessionId",
            "cookie_count",
            "quoteToken",
        ),
    ],
)
def test_keys_that_only_look_like_one(key):
    redactor = Redactor(LoggingConfig().redact)
    assert not redactor.has_secret({"a": [{"b": {key: 1}}]})


def test_the_names_are_configurable(tmp_path):
    with Logger(tmp_path, LoggingConfig(redact=["accountId"])) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event(extra={"account_id": "a-1", "token": "t-1"}))
    assert "a-1" not in disk_text(tmp_path)
    assert "t-1" in disk_text(tmp_path)
    assert not Redactor([]).has_secret({"apiKey": 1})


def test_the_memory_of_harmless_keys_is_bounded():
    redactor = Redactor(["secret"])
    for n in range(10_000):
        assert not redactor.has_secret({f"key{n}": 1})
    assert redactor.has_secret({"key1": 1, "secret": 1})
    assert len(redactor._harmless) <= 4096


def test_the_default_names_are_documented_secrets_and_a_token_is_a_coin():
    names = LoggingConfig().redact
    page = (Path(__file__).parents[2] / "docs" / "durability.md").read_text()
    secrets = page.split("## Secrets")[1].split("##")[0]
    assert [name for name in names if f"`{name}`" not in secrets] == []
    assert "token" not in names


def test_redactions_are_counted_in_health_and_each_key_is_warned_of_once(tmp_path, caplog):
    with Logger(tmp_path) as logger:
        for _ in range(3):
            logger.log_state_event("BTCUSDT", sample.state_event(extra=SECRETS))
        logger.log_trade(sample.trade(apiKey="k-5"))
        stats, health = logger.stats(), logger.health()
    assert stats.redactions == 13
    assert stats.redacted_keys == ("apiKey", "Bybit_API-Key", "accessToken", "PASSWORD")
    assert health.status == "OK"
    assert "13 values redacted, of the keys apiKey, Bybit_API-Key" in health.message
    warned = [record.getMessage() for record in caplog.records if "redacted" in record.getMessage()]
    assert len(warned) == 4
    assert "'apiKey'" in warned[0]
