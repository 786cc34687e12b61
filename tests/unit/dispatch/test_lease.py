"""The lease (R39)."""

from __future__ import annotations

from vpp_dispatch.dispatch.lease import Lease


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_r39_there_is_no_lease_before_a_commit_was_accepted() -> None:
    lease = Lease(session_timeout_s=15, clock=Clock())
    assert not lease.fresh() and not lease.lapsed()


def test_r39_it_lasts_a_third_of_the_session() -> None:
    clock = Clock()
    lease = Lease(session_timeout_s=15, clock=clock)
    lease.renew(clock.now)
    clock.now += 4.9
    assert lease.fresh()
    clock.now += 0.2
    assert not lease.fresh() and lease.lapsed()


def test_r39_it_counts_from_before_the_request_so_that_an_answer_after_a_freeze_renews_nothing() -> None:
    clock = Clock()
    lease = Lease(session_timeout_s=15, clock=clock)
    asked_at = clock.now
    clock.now += 60  # frozen while the commit was under way
    lease.renew(asked_at)
    assert not lease.fresh()


def test_r39_an_older_answer_shortens_nothing() -> None:
    clock = Clock()
    lease = Lease(session_timeout_s=15, clock=clock)
    lease.renew(clock.now)
    lease.renew(clock.now - 10)
    assert lease.fresh()


def test_r39_what_was_given_up_is_neither_fresh_nor_lapsed() -> None:
    lease = Lease(session_timeout_s=15, clock=Clock())
    lease.renew(100.0)
    lease.drop()
    assert not lease.fresh() and not lease.lapsed()
