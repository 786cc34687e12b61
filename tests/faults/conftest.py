"""A whole run on brokers that a test may break: topics of its own, a simulator, workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.stack import Stack


@pytest.fixture
async def stack(broker: Broker, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack on the embedded broker, GoodWe's topics included; not started. Stopped when the test is over."""
    made = Stack(bootstrap_servers=broker.bootstrap_servers, prefix=topic_prefix, folder=tmp_path)
    yield made
    await made.stop()


@pytest.fixture
async def apart(broker: Broker, second_broker: Broker, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack whose GoodWe has a cluster of its own."""
    made = Stack(
        bootstrap_servers=broker.bootstrap_servers,
        goodwe_servers=second_broker.bootstrap_servers,
        prefix=topic_prefix,
        folder=tmp_path,
    )
    yield made
    for cluster in (broker, second_broker):  # a frozen one would hold up the stop
        if cluster.running:
            cluster.thaw()
        else:
            cluster.start()
    await made.stop()
