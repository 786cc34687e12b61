"""Logs on standard output: JSON, or for people on a terminal; ours and the frameworks' in the same form.

One canonical line per unit of work, the event named `signal.accepted`, `batch.published`, `result.joined`, the rest as
fields. The level error means that code or configuration has to change. Modules take `structlog.get_logger(__name__)`.
"""

from __future__ import annotations

import logging
import logging.config
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "json", "console"]

HIDDEN = "[hidden]"
_SECRET_WORDS = ("password", "secret", "token", "authorization", "credential")
_MOST_TEMPLATES = 1000


class RateLimit(logging.Filter):
    """Lets at most `lines` records per template and interval through, and then says how many it held back.

    aiokafka writes 80 lines a second and worker while a broker is away. Belongs on a handler, since a logger's filter
    does not see what its children log. A summary goes out with the next record of any logger after the interval.

    Args:
        prefixes: names of the loggers it is for, their children included; other records pass.
        lines: records per template and interval.
        interval_s: length of an interval in seconds.
        monotonic: the clock, in seconds.
    """

    def __init__(
        self,
        prefixes: tuple[str, ...] = ("aiokafka",),
        *,
        lines: int = 3,
        interval_s: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._lines = lines
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # (logger, template) -> end of interval, records
        self._next_end = float("inf")

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._monotonic()
        if now >= self._next_end:
            self._close_intervals(now)
        if not any(record.name == p or record.name.startswith(p + ".") for p in self._prefixes):
            return True
        key = (record.name, str(record.msg))
        end, count = self._seen.get(key, (now + self._interval_s, 0))
        if count == 0 and len(self._seen) >= _MOST_TEMPLATES:
            # templates with values in them: count them as one rather than grow without bound
            key = (record.name, "(other templates)")
            end, count = self._seen.get(key, (now + self._interval_s, 0))
        self._seen[key] = (end, count + 1)
        self._next_end = min(self._next_end, end)
        return count < self._lines

    def _close_intervals(self, now: float) -> None:
        ended = [(key, count) for key, (end, count) in self._seen.items() if end <= now]
        for key, _ in ended:
            del self._seen[key]
        # before anything is logged: the summaries come through this filter too
        self._next_end = min((end for end, _ in self._seen.values()), default=float("inf"))
        for (name, template), count in ended:
            if count > self._lines:
                structlog.get_logger(__name__).warning(
                    "log.held_back",
                    logger=name,
                    template=template,
                    count=count - self._lines,
                    interval_s=self._interval_s,
                )


def _hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A field named like a secret never shows its value, whoever logs it."""
    for key in event:
        lowered = key.lower()
        if any(word in lowered for word in _SECRET_WORDS) and not lowered.endswith("_file"):
            event[key] = HIDDEN
    return event


def _broker_is_no_error(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """aiokafka calls an absent broker an error; nothing has to change in code or configuration for it."""
    record = event.get("_record")
    if record is not None and record.name.startswith("aiokafka") and event.get("level") == "error":
        event["level"] = "warning"
    return event


def _logger_name(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The record's logger, unless the line is about another one."""
    record = event.get("_record")
    if record is not None:
        event.setdefault("logger", record.name)
    return event


def configure(level: str, form: Format) -> dict[str, Any]:
    """Sets up structlog and the standard library's logging.

    Args:
        level: least level written: debug, info, warning or error.
        form: `json`, `console`, or `auto`: JSON unless standard output is a terminal.

    Returns:
        The same set-up as a `logging.config.dictConfig` dictionary, for `faust.App(logging_config=...)` and for
        `faust.Worker(app, loglevel=..., redirect_stdouts=False, logging_config=...)`, which clear the root's handlers.
    """
    stream = sys.__stdout__
    terminal = stream is not None and stream.isatty()
    as_json = form == "json" or (form == "auto" and not terminal)
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    after: list[Processor] = [
        _logger_name,
        _broker_is_no_error,
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    ]
    after += [_hide_secrets]
    if as_json:
        after += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Not the default with rich installed, whose tracebacks show the values of all variables, secrets among them.
        plain = structlog.dev.plain_traceback
        after += [structlog.dev.ConsoleRenderer(colors=terminal, timestamp_key="at", exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # module loggers outlive a second configure() in tests; 1 us per line
    )
    # A line per HTTP request, or per part of the framework that starts and stops, is no unit of work. Faust's services
    # log under the module of their class, ours among them.
    quiet = ("faust", "mode", "aiokafka.consumer.group_coordinator", "vpp_dispatch.dispatch")
    telling = {"aiokafka.conn": "NOTSET", "aiokafka.producer.producer": "NOTSET", "faust.topics": "WARNING"}
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"rate_limit": {"()": RateLimit}},
        "formatters": {
            "line": {"()": structlog.stdlib.ProcessorFormatter, "processors": after, "foreign_pre_chain": before},
        },
        "handlers": {
            "out": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.__stdout__",
                "formatter": "line",
                "filters": ["rate_limit"],
            }
        },
        "root": {"level": level.upper(), "handlers": ["out"]},
        "loggers": {
            **{name: {"level": "WARNING"} for name in ("httpx", "httpcore", "aiohttp.access")},
            **{name: {"level": "NOTSET" if level == "debug" else "WARNING"} for name in quiet},
            # Their debug lines are requests and records, byte by byte: the password of SASL PLAIN, serial numbers.
            **{name: {"level": "INFO" if level == "debug" else own} for name, own in telling.items()},
        },
    }
    logging.config.dictConfig(config)
    return config
