"""The circuit breaker as a state machine: no calls, and a clock by hand."""

from __future__ import annotations

import pytest

from vpp_dispatch.errors import NotReachable
from vpp_dispatch.goodwe.circuit import Circuit, State


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns() -> list[State]:
    return []


@pytest.fixture
def circuit(clock: Clock, turns: list[State]) -> Circuit:
    return Circuit(faults=3, pause_s=30, clock=clock, changed=lambda state, why: turns.append(state))


def _fail(circuit: Circuit, times: int) -> None:
    for _ in range(times):
        circuit.admit()
        circuit.failed("HTTP 503.")


def test_faults_in_a_row_open_it_and_no_call_leaves(circuit: Circuit, clock: Clock, turns: list[State]) -> None:
    _fail(circuit, 2)
    circuit.admit()
    circuit.answered()
    _fail(circuit, 2)
    assert turns == []  # not in a row
    _fail(circuit, 1)
    assert turns == ["open"]
    clock.now += 29.9
    with pytest.raises(NotReachable, match=r"3 faults in a row.*HTTP 503") as fault:
        circuit.admit()
    assert (fault.value.reason, fault.value.retriable) == ("circuit_open", False)


def test_one_call_probes_and_closes_it(circuit: Circuit, clock: Clock, turns: list[State]) -> None:
    _fail(circuit, 3)
    clock.now += 30
    circuit.admit()
    with pytest.raises(NotReachable, match="while one call probes"):
        circuit.admit()
    circuit.answered()
    circuit.admit()
    assert turns == ["open", "probing", "closed"]


def test_a_probe_that_fails_opens_it_for_another_pause(circuit: Circuit, clock: Clock, turns: list[State]) -> None:
    _fail(circuit, 3)
    clock.now += 30
    _fail(circuit, 1)
    clock.now += 29
    with pytest.raises(NotReachable):
        circuit.admit()
    clock.now += 1
    circuit.admit()
    assert turns == ["open", "probing", "open", "probing"]


def test_a_probe_that_is_cut_off_leaves_its_place_to_the_next(circuit: Circuit, clock: Clock) -> None:
    _fail(circuit, 3)
    clock.now += 30
    circuit.admit()
    circuit.cut_off()
    circuit.admit()
    assert circuit.state == "probing"


def test_calls_that_were_under_way_when_it_opened(circuit: Circuit, turns: list[State]) -> None:
    for _ in range(5):
        circuit.admit()
    for _ in range(4):
        circuit.failed("no answer")
    assert turns == ["open"]  # told once
    circuit.answered()  # the fifth was answered after all
    assert turns == ["open", "closed"]
    circuit.cut_off()
    assert circuit.state == "closed"
