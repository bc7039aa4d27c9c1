"""Write a database with freqtrade's own persistence layer; run it with freqtrade's Python.

::

    python freqtrade_database.py trades.sqlite      # prints the PnL of each closed trade as a JSON list
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT")


def order_of(trade: Any, side: str, kind: str, price: float, when: datetime, status: str = "closed") -> None:
    from freqtrade.persistence import Order  # type: ignore[import-not-found]

    filled = trade.amount if status == "closed" else 0.0
    plain = {
        "id": f"o{random.random()}",
        "symbol": trade.pair,
        "side": side,
        "type": kind,
        "price": price,
        "average": price,
        "amount": trade.amount,
        "filled": filled,
        "remaining": trade.amount - filled,
        "cost": price * filled,
        "status": status,
        "timestamp": int(when.timestamp() * 1000),
    }
    order = Order.parse_from_ccxt_object(plain, trade.pair, side, trade.amount, price)
    order.order_date = when
    order.order_filled_date = when + timedelta(seconds=2) if status == "closed" else None
    trade.orders.append(order)


def make(path: str) -> list[float]:
    from freqtrade.enums import TradingMode  # type: ignore[import-not-found]
    from freqtrade.persistence import Trade, init_db

    init_db(f"sqlite:///{path}")
    random.seed(1)
    now = datetime(2025, 3, 1, tzinfo=UTC)
    for number in range(40):
        short, pair = number % 3 == 0, PAIRS[number % 2]
        price, amount = round(random.uniform(100, 110), 2), round(random.uniform(0.1, 2), 3)
        trade = Trade(
            pair=pair,
            base_currency=pair[:3],
            stake_currency="USDT",
            stake_amount=price * amount,
            amount=amount,
            amount_requested=amount,
            open_rate=price,
            open_rate_requested=price,
            open_date=now,
            fee_open=0.0005,
            fee_close=0.0005,
            exchange="binance",
            is_open=True,
            is_short=short,
            leverage=3.0,
            trading_mode=TradingMode.FUTURES,
            strategy="Scalp",
            timeframe=5,
            funding_fees=0.0,
        )
        enter, leave = ("sell", "buy") if short else ("buy", "sell")
        order_of(trade, enter, "limit", price, now)
        trade.recalc_open_trade_value()
        Trade.session.add(trade)
        Trade.commit()
        trade.recalc_trade_from_orders()
        if number == 39:
            break
        if number % 5 == 0:
            order_of(trade, leave, "limit", price * 1.01, now + timedelta(seconds=10), "canceled")
        exit_price, end = (
            round(price * random.uniform(0.99, 1.01), 2),
            now + timedelta(minutes=random.randint(1, 30)),
        )
        order_of(trade, leave, "market", exit_price, end)
        trade.exit_reason = random.choice(["roi", "stop_loss", "exit_signal"])
        if number % 4 == 0:
            trade.set_funding_fees(round(random.uniform(-0.1, 0.1), 4))
        trade.close(exit_price, show_msg=False)
        trade.close_date = end
        Trade.commit()
        now = end + timedelta(minutes=5)
    Trade.commit()
    return [trade.close_profit_abs for trade in Trade.get_trades_proxy(is_open=False)]


if __name__ == "__main__":
    print(json.dumps(make(sys.argv[1])))
