"""Bytes of the inboxes: each message comes back equal, and what nobody wrote is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vpp_dispatch.dispatch import inbox
from vpp_dispatch.dispatch.inbox import Origin, ProgressReport, SignalReceived, SignalRefused, SwitchTurned
from vpp_dispatch.domain.account import Counts, Latency
from vpp_dispatch.domain.command import Results
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.inputs import (
    Cancel,
    Close,
    Consent,
    Progress,
    RegistryChange,
    Selector,
    SlotResults,
    Switches,
    Telemetry,
)
from vpp_dispatch.domain.signal import Control, Form, Kind, Targets
from vpp_dispatch.errors import InvariantBroken

ORIGIN = Origin(topic="dispatch.signals.v1", partition=3, offset=7, timestamp=1.5)
SELECTOR = Selector(
    event="grid/a",
    source="grid",
    event_id="a",
    revision=2,
    priority=7,
    created_at=1.0,
    accepted_at=2.0,
    start_at=3.0,
    end_at=4.5,
    targets=Targets(devices=("9010KETU000W0000",), sites=("s",)),
    controls=(
        Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=3000),
        Control(kind=Kind.EXPORT_LIMIT, form=Form.BY_TARGET_W, sites_w={"s": 1}, devices_w={"d": 2}),
    ),
)


@pytest.mark.parametrize(
    "message",
    [
        SELECTOR,
        Cancel(event="grid/a", revision=1, at=9.25),
        Cancel(event="grid/a", revision=1, at=9.25, ramp_down_s=5, aborted=True),
        Switches(number=7, releases_only=True),
        SwitchTurned(switch="abort", on=True, at=1.0, by="me@here", reason="smoke", event="grid/a"),
        Close(event="grid/ü", revision=1, at=9.25),
        Consent(at=5.0, authorized=(("9010KETU000W0000", None), ("9010KETU000W0001", 7.5))),
        RegistryChange(
            partition=1,
            changes=((5, "x", None), (6, "y", Record(sn="y", groups=("g", "h"), default={1: (1, 0), 2: (0, 5000)}))),
        ),
        SignalReceived(origin=ORIGIN, source="grid", body=b"\x00\n\xff", traceparent="00-1"),
        SignalRefused(origin=ORIGIN, source="grid", event_id="a", revision=1, reason="invalid", detail="no"),
        ProgressReport(
            progress=(
                Progress(
                    shard=1,
                    epoch=2,
                    sequence=3,
                    event="grid/a",
                    revision=1,
                    counts=Counts(reasons={"skipped.offline": 2}, result_latency=Latency(max_s=1.5), settled=True),
                ),
            )
        ),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_comes_back_equal(message: object) -> None:
    assert inbox.decode(inbox.encode(message)) == message  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_results_without_an_id_come_back_equal(n: int) -> None:
    results = SlotResults(
        sn=[f"9010KETU000W{i:04d}" for i in range(n)],
        actuator=np.arange(n, dtype=np.uint8),
        single=np.arange(n) % 2 == 1,
        code=np.arange(n, dtype=np.uint8),
        accepted=np.arange(n) % 2 == 0,
        first=-np.arange(n, dtype=np.int32),
        second=np.arange(n, dtype=np.int32) * 1000,
        at=np.arange(n, dtype=np.float64) + 0.25,
    )
    back = inbox.decode(inbox.encode(results))
    assert isinstance(back, SlotResults) and back.sn == results.sn
    for field in dataclasses.fields(SlotResults)[1:]:
        assert np.array_equal(getattr(back, field.name), getattr(results, field.name))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_results_come_back_equal(n: int) -> None:
    results = Results(
        ids=np.arange(16 * n, dtype=np.uint8).reshape(n, 16),
        code=np.arange(n, dtype=np.uint8),
        accepted=np.arange(n) % 2 == 0,
        first=-np.arange(n, dtype=np.int32),
        second=np.arange(n, dtype=np.int32) * 1000,
        at=np.arange(n, dtype=np.float64) + 0.25,
    )
    back = inbox.decode(inbox.encode(results))
    assert isinstance(back, Results) and len(back) == n
    for f in dataclasses.fields(Results):
        mine, theirs = getattr(results, f.name), getattr(back, f.name)
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and (mine == theirs).all(), f.name


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\n",
        b"nonsense",
        b"selector\n",
        b"selector\n\x80",
        b"results\n\x91\xc4\x01a",
        b"results\n\xc1",
        b"\xff\xfe\n\x80",
        b"unknown\n\x80",
    ],
)
def test_what_nobody_wrote_is_refused(value: bytes) -> None:
    with pytest.raises(InvariantBroken):
        inbox.decode(value)


def test_telemetry_has_no_place_in_an_inbox() -> None:
    with pytest.raises(InvariantBroken):
        inbox.encode(Telemetry())
