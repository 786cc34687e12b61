"""Logs: one form for ours and the frameworks', no flood, no secrets."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from vpp_dispatch.observability.logging import RateLimit, configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Puts the process's logging back, so that no other test sees what was configured here."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_ours_and_theirs_are_json_of_one_form(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    structlog.get_logger("vpp_dispatch.intake").info("signal.accepted", source="west", revision=1)
    logging.getLogger("faust.app").warning("rebalance %s", 7)
    structlog.get_logger("vpp_dispatch").debug("not.shown")
    ours, theirs = lines(capfd)
    assert ours.pop("at").endswith("Z")
    assert ours == {
        "event": "signal.accepted",
        "source": "west",
        "revision": 1,
        "level": "info",
        "logger": "vpp_dispatch.intake",
    }
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("rebalance 7", "warning", "faust.app")


def test_the_framework_s_own_comings_and_goings_are_shown_at_debug_only(capfd: pytest.CaptureFixture[str]) -> None:
    for level, shown in (("info", []), ("debug", ["Starting"])):
        configure(level, "json")
        logging.getLogger("mode.services").info("Starting")
        assert [line["event"] for line in lines(capfd)] == shown


def test_an_exception_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("a").exception("shard.failed")
        logging.getLogger("b").exception("theirs")
    for line in lines(capfd):
        assert "ValueError: broken" in line["exception"]


def test_secrets_are_hidden_whoever_logs_them(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    fields = {"password": "hush", "Authorization": "Bearer hush", "value": SecretStr("hush"), "password_file": "/run/p"}
    structlog.get_logger("a").info("x", **fields)
    out = capfd.readouterr().out
    assert "hush" not in out
    assert json.loads(out)["password_file"] == "/run/p"


def test_an_absent_broker_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logging.getLogger("aiokafka.conn").error("Unable to connect")
    logging.getLogger("faust").error("ours")
    assert [line["level"] for line in lines(capfd)] == ["warning", "error"]


def test_console_is_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "console")
    structlog.get_logger("a").info("signal.accepted", source="west")
    out = capfd.readouterr().out
    assert "signal.accepted" in out
    assert not out.startswith("{")


def test_auto_is_json_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "auto")
    structlog.get_logger("a").info("x")
    assert lines(capfd)[0]["event"] == "x"


WORKER = """
import faust, structlog
from vpp_dispatch.observability.logging import configure
config = configure("info", "json")
app = faust.App("x", broker="kafka://127.0.0.1:1", web_enabled=False, logging_config=config)
worker = faust.Worker(app, loglevel="INFO", redirect_stdouts=False, logging_config=dict(config))
worker._setup_logging()
worker.log.warning("from the worker %s", 1)
structlog.get_logger("vpp_dispatch").info("ours")
"""


@pytest.mark.exhaustive
def test_fausts_worker_keeps_the_form() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True, timeout=60)
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events == ["[^Worker]: from the worker 1", "ours"]


class Clock:
    """Monotonic seconds that move when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(message: str, *args: object, name: str = "aiokafka.conn") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, message, args, None)


def test_a_template_passes_so_often_and_then_its_count(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    clock = Clock()
    limit = RateLimit(lines=2, interval_s=10, monotonic=clock)
    assert [limit.filter(record("node %s away", n)) for n in range(5)] == [True, True, False, False, False]
    assert limit.filter(record("another"))
    clock.now = 9.9
    assert not limit.filter(record("node %s away", 9))
    assert not lines(capfd)
    clock.now = 10.0
    assert limit.filter(record("anybody", name="vpp_dispatch"))
    (summary,) = lines(capfd)
    assert (summary["event"], summary["level"]) == ("log.held_back", "warning")
    assert (summary["logger"], summary["template"], summary["count"]) == ("aiokafka.conn", "node %s away", 4)
    assert limit.filter(record("node %s away", 1))


def test_other_loggers_are_never_held_back() -> None:
    limit = RateLimit(lines=1)
    assert all(limit.filter(record("same", name=name)) for name in ["vpp_dispatch", "aiokafkaesque"] for _ in range(9))


def test_templates_without_end_do_not_take_memory_without_end() -> None:
    limit = RateLimit(lines=1, monotonic=Clock())
    passed = sum(limit.filter(record(f"value {n}")) for n in range(3000))
    assert passed == 1001
    assert len(limit._seen) == 1001


def test_configure_holds_aiokafka_back_also_in_its_children(capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    for n in range(20):
        logging.getLogger("aiokafka.conn").error("node %s away", n)
        logging.getLogger("faust").warning("kept %s", n)
    shown = [line["logger"] for line in lines(capfd)]
    assert (shown.count("aiokafka.conn"), shown.count("faust")) == (3, 20)
