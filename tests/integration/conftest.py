"""A whole run for a test: topics of its own, a simulator, workers; audited when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import Kafka
from vpp_dispatch.demo.stack import Stack


@pytest.fixture
async def stack(kafka: Kafka, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack on the session's Kafka; not started. Stopped when the test is over."""
    made = Stack(bootstrap_servers=kafka.bootstrap_servers, prefix=topic_prefix, folder=tmp_path)
    yield made
    await made.stop()


StackOf = Callable[..., Stack]
