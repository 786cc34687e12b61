"""The life of an event, by rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from vpp_dispatch.domain.account import Counts, State
from vpp_dispatch.domain.device import SHARDS, shard_of
from vpp_dispatch.domain.event import (
    CLOSE_WAIT_S,
    KEEP_S,
    Event,
    Verdict,
    addressed,
    objections,
    outcome_code,
    selectors,
)
from vpp_dispatch.domain.inputs import Progress
from vpp_dispatch.domain.signal import Action, Control, Form, Kind, Signal, Targets

DAY = 86_400.0
GRACE = 600.0
CHARGE = Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=3000)
SNS = tuple(f"9010KETU000W{n:04d}" for n in range(200))


def signal(revision: int = 1, action: Action = Action.DISPATCH, **more: Any) -> Signal:
    """A dispatch of [100, 200) to one feeder, or a cancellation."""
    values: dict[str, Any] = {
        "event_id": "e",
        "source": "west",
        "revision": revision,
        "action": action,
        "created_at": 10.0,
        "expires_at": 1000.0,
        "digest": f"{revision}{action}",
    }
    if action is Action.DISPATCH:
        values |= {"start_at": 100.0, "end_at": 200.0, "targets": Targets(groups=("f",)), "controls": (CHARGE,)}
    return Signal(**(values | more))


def cancel(revision: int = 2, **more: Any) -> Signal:
    return signal(revision, Action.CANCEL, **more)


def receive(
    event: Event, what: Signal, at: float = 50.0, *, now: float | None = None, why: tuple[str, ...] = ()
) -> Verdict:
    return event.receive(what, at=at, now=at if now is None else now, longest_s=DAY, objections=why)


def codes(event: Event, revision: int) -> list[int]:
    return [reply.code for reply in event.answers[revision].replies]


def reasons(event: Event, revision: int) -> tuple[str, ...]:
    return event.answers[revision].replies[-1].reasons


def new() -> Event:
    return Event(source="west", event_id="e")


def sent(event: Event) -> None:
    """What a coordinator does between two ticks."""
    assert event.run is not None
    event.run.sent = True
    event.run.cancel_sent = event.run.cancelled_at is not None
    event.run.close_sent = event.run.closing_at is not None
    event.report_due = event.dirty = event.lazy = event.dirty_counts = False
    event.untold.clear()


def tell(event: Event, sequence: int, *, shards: tuple[int, ...] = tuple(range(SHARDS)), **counts: Any) -> None:
    assert event.run is not None
    for shard in shards:
        event.take(
            Progress(
                shard=shard,
                epoch=1,
                sequence=sequence,
                event="west/e",
                revision=event.run.revision,
                counts=Counts(**counts),
            )
        )


def states(**n: int) -> tuple[int, ...]:
    return tuple(n.get(state.name.lower(), 0) for state in State)


# ---------------------------------------------------------------------------------------------- signals


def test_r01_the_same_revision_again_is_answered_with_the_same_reply_and_changes_nothing() -> None:
    event = new()
    receive(event, signal())
    run = replace(event.run) if event.run else None
    event.answers[1].replies[0].told = True
    event.untold.clear()
    assert receive(event, signal(), 60.0) is Verdict.REPEATED
    assert event.run == run
    assert codes(event, 1) == [1]
    assert [reply.code for _, reply in event.untold] == [1]
    assert event.answers[1].replies[0].at == 50.0


def test_r01_other_content_under_the_same_revision_is_refused_once_and_the_event_goes_on() -> None:
    event = new()
    receive(event, signal())
    assert receive(event, signal(digest="other")) is Verdict.REFUSED
    assert receive(event, signal(digest="third")) is Verdict.REFUSED
    assert codes(event, 1) == [1, 253]
    assert reasons(event, 1) == ("duplicate_identifier",)
    assert event.run is not None and event.run.state == "scheduled"


def test_r01_a_refused_revision_stays_refused_whatever_comes_under_its_number() -> None:
    event = new()
    receive(event, signal(), why=("not_granted",))
    assert receive(event, signal(digest="better")) is Verdict.REPEATED
    assert codes(event, 1) == [252]
    assert event.run is None


def test_r02_a_lower_revision_is_dropped() -> None:
    event = new()
    receive(event, signal(3))
    assert receive(event, signal(2)) is Verdict.STALE
    assert 2 not in event.answers
    assert event.run is not None and event.run.revision == 3


def test_r02_a_refused_revision_does_not_make_a_lower_one_stale() -> None:
    event = new()
    receive(event, signal(2), why=("not_supported",))
    assert receive(event, signal(1)) is Verdict.ACCEPTED


def test_r02_a_new_revision_replaces_the_old_one_which_gets_no_final_response() -> None:
    event = new()
    receive(event, signal())
    sent(event)
    event.advance(100.0, grace_s=GRACE)
    tell(event, 1, states=states(applied=1))
    assert receive(event, signal(2, end_at=300.0), 110.0) is Verdict.ACCEPTED
    assert event.run is not None and (event.run.revision, event.run.state) == (2, "scheduled")
    assert not event.told, "counts of the old revision do not count any more"
    late = Progress(shard=1, epoch=9, sequence=9, event="west/e", revision=1, counts=Counts(settled=True))
    assert not event.take(late)
    event.advance(110.0, grace_s=GRACE)
    event.advance(250.0, grace_s=GRACE)
    assert (codes(event, 1), codes(event, 2)) == ([1, 2], [1, 2])
    assert event.run.state == "active"


def test_r02_a_cancellation_before_its_event_is_remembered() -> None:
    event = new()
    assert receive(event, cancel(2)) is Verdict.ACCEPTED
    assert codes(event, 2) == [1, 6]
    assert receive(event, signal(1)) is Verdict.REFUSED
    assert receive(event, signal(3)) is Verdict.REFUSED
    assert event.run is None
    for revision in (1, 3):
        assert (codes(event, revision), reasons(event, revision)) == ([253], ("cancelled",))


def test_r03_after_its_end_a_signal_is_answered_254() -> None:
    event = new()
    assert receive(event, signal(), 50.0, now=200.0) is Verdict.REFUSED
    assert codes(event, 1) == [254]
    assert event.answers[1].replies[0].at == 200.0, "it says when it was read"
    assert event.run is None


def test_r03_between_start_and_end_what_remains_is_run() -> None:
    event = new()
    assert receive(event, signal(), 199.0) is Verdict.ACCEPTED
    assert event.advance(199.0, grace_s=GRACE) == ["started"]
    assert codes(event, 1) == [1, 2]


@pytest.mark.parametrize(("now", "verdict"), [(60.0, Verdict.ACCEPTED), (60.1, Verdict.REFUSED)])
def test_r04_what_is_first_read_after_it_expires_is_answered_254(now: float, verdict: Verdict) -> None:
    event = new()
    assert receive(event, signal(expires_at=60.0), now=now) is verdict


def test_r04_expiry_bounds_nothing_once_accepted() -> None:
    event = new()
    receive(event, signal(expires_at=60.0))
    assert receive(event, signal(expires_at=60.0), 150.0) is Verdict.REPEATED
    assert event.advance(150.0, grace_s=GRACE) == ["started"]


def test_r04_a_cancellation_that_is_read_too_late_is_not_executed() -> None:
    event = new()
    receive(event, signal())
    receive(event, cancel(expires_at=60.0), 70.0)
    assert codes(event, 2) == [254]
    assert event.run is not None and event.run.cancelled_at is None


def test_r05_an_open_ended_event_gets_the_longest_duration() -> None:
    event = new()
    receive(event, signal(start_at=None, end_at=None, open_ended=True), 50.0)
    assert event.run is not None and (event.run.start_at, event.run.end_at) == (50.0, 50.0 + DAY)


def test_r05_an_end_beyond_the_longest_event_is_invalid() -> None:
    event = new()
    receive(event, signal(end_at=100.0 + DAY))
    assert codes(event, 1) == [1]
    receive(event, signal(2, end_at=100.1 + DAY))
    assert (codes(event, 2), reasons(event, 2)) == ([253], ("longest_event",))


def test_r06_a_test_is_received_closed_on_what_the_shards_judged_and_never_started() -> None:
    event = new()
    receive(event, signal(test=True))
    sent(event)
    tell(event, 1, states=states(unused=1, skipped=1), settled=True)
    assert event.advance(51.0, grace_s=GRACE) == ["closing"]
    sent(event)
    tell(event, 2, states=states(unused=1, skipped=1), settled=True, closed=True)
    assert event.advance(52.0, grace_s=GRACE) == ["closed"]
    assert codes(event, 1) == [1, 3]


def test_r08_what_cannot_be_read_is_answered_253_once() -> None:
    event = new()
    assert event.refuse_unread(1, reason="unknown_field", at=50.0) is Verdict.REFUSED
    assert event.refuse_unread(1, reason="invalid", at=51.0) is Verdict.REPEATED
    assert (codes(event, 1), reasons(event, 1)) == ([253], ("unknown_field",))


def test_r08_unreadable_bytes_under_an_accepted_revision_are_a_second_content() -> None:
    event = new()
    receive(event, signal())
    assert event.refuse_unread(1, reason="invalid", at=51.0) is Verdict.REFUSED
    assert reasons(event, 1) == ("duplicate_identifier",)


@dataclass(frozen=True)
class Places:
    areas: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Granted:
    targets: Literal["all"] | Places = "all"
    kinds: tuple[str, ...] | None = None
    min_priority: int = 0
    max_w: int | None = None


@pytest.mark.parametrize(
    ("what", "grant", "granted"),
    [
        (signal(), Granted(), True),
        (signal(), None, False),
        (signal(), Granted(targets=Places(groups=("f", "g"))), True),
        (signal(), Granted(targets=Places(groups=("g",))), False),
        (signal(), Granted(targets=Places(areas=("f",))), False),
        (signal(targets=Targets(all=True)), Granted(targets=Places(areas=("f",))), False),
        (signal(targets=Targets(devices=SNS[:1])), Granted(targets=Places(areas=("f",))), False),
        (signal(), Granted(kinds=("charge",)), True),
        (signal(), Granted(kinds=("discharge",)), False),
        (signal(priority=10), Granted(min_priority=11), False),
        (signal(priority=11), Granted(min_priority=11), True),
        (signal(), Granted(max_w=3000), True),
        (signal(), Granted(max_w=2999), False),
        (cancel(), Granted(min_priority=255, kinds=()), True),
    ],
)
def test_r09_a_source_may_ask_for_what_its_grant_says(what: Signal, grant: Granted | None, granted: bool) -> None:
    assert objections(what, grant) == (() if granted else ("not_granted",))


@pytest.mark.parametrize(
    ("what", "built"),
    [
        (signal(), True),
        (signal(controls=(Control(kind=Kind.STANDBY, form=Form.NONE),)), True),
        (signal(controls=(Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=0),)), True),
        (signal(controls=(CHARGE, Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=0))), True),
        (signal(controls=(Control(kind=Kind.CHARGE, form=Form.TOTAL_W, total_w=5),)), False),
        (signal(controls=(Control(kind=Kind.EXPORT_LIMIT, form=Form.BY_TARGET_W, sites_w={"s": 1}),)), True),
        (signal(controls=(Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_W, each_w=5),)), True),
        (signal(controls=(Control(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=0.9, excitation="over"),)), True),
        (signal(ramp_up_s=1), True),
        (signal(ramp_down_s=1), True),
        (cancel(ramp_down_s=1, names_ramp_down=True), True),
        (cancel(ramp_down_s=0, names_ramp_down=True), True),
        (signal(action=Action.RELEASE), True),
    ],
)
def test_what_is_not_built_yet_is_refused_and_never_half_done(what: Signal, built: bool) -> None:
    assert objections(what, Granted()) == (() if built else ("not_supported",))


def test_an_objection_is_answered_252_with_its_reason() -> None:
    event = new()
    assert receive(event, signal(), why=("not_granted", "not_supported")) is Verdict.REFUSED
    assert (codes(event, 1), reasons(event, 1)) == ([252], ("not_granted", "not_supported"))


# ---------------------------------------------------------------------------------------------- cancellations


def test_r15_a_scheduled_event_is_cancelled_and_never_starts() -> None:
    event = new()
    receive(event, signal())
    assert receive(event, cancel(), 60.0) is Verdict.ACCEPTED
    assert (codes(event, 1), codes(event, 2)) == ([1], [1, 6])
    event.advance(150.0, grace_s=GRACE)
    assert codes(event, 1) == [1], "no response 2"


def test_r15_an_active_event_is_cancelled_at_once_and_closes_without_a_final_response() -> None:
    event = new()
    receive(event, signal())
    sent(event)
    event.advance(100.0, grace_s=GRACE)
    receive(event, cancel(), 150.0)
    assert codes(event, 2) == [1, 6]
    sent(event)
    tell(event, 1, states=states(applied=1), settled=True)
    assert event.advance(151.0, grace_s=GRACE) == ["closing"]
    sent(event)
    tell(event, 2, states=states(applied=1), settled=True, closed=True)
    assert event.advance(152.0, grace_s=GRACE) == ["closed"]
    assert (codes(event, 1), codes(event, 2)) == ([1, 2], [1, 6])
    assert event.report_due


@pytest.mark.parametrize("now", [200.0, 5000.0])
def test_r15_a_finished_event_cannot_be_cancelled(now: float) -> None:
    event = new()
    receive(event, signal())
    receive(event, cancel(expires_at=9000.0), now)
    assert (codes(event, 2), reasons(event, 2)) == ([252], ("finished",))


def test_r15_a_second_cancellation_finds_it_finished_and_a_dispatch_after_it_is_refused() -> None:
    event = new()
    receive(event, signal())
    receive(event, cancel(), 60.0)
    receive(event, cancel(3), 70.0)
    receive(event, signal(4), 80.0)
    assert reasons(event, 3) == ("finished",)
    assert reasons(event, 4) == ("cancelled",)


# ---------------------------------------------------------------------------------------------- shards and time


def test_only_the_newest_counts_of_a_shard_count() -> None:
    event = new()
    receive(event, signal())
    for epoch, sequence, n, newest in (
        (2, 5, 5, True),
        (2, 5, 6, False),
        (2, 4, 4, False),
        (1, 9, 9, False),
        (3, 1, 7, True),
    ):
        counts = Counts(states=states(pending=n))
        progress = Progress(shard=1, epoch=epoch, sequence=sequence, event="west/e", revision=1, counts=counts)
        assert event.take(progress) is newest
    assert event.counts[1].targeted == 7


def test_equal_counts_after_a_takeover_are_kept_and_not_reported() -> None:
    event = new()
    receive(event, signal())
    tell(event, 1, states=states(pending=1))
    sent(event)
    tell(event, 2, states=states(pending=1))
    assert event.dirty_counts
    assert not event.report_due


def test_shards_that_were_not_addressed_have_nothing_to_say() -> None:
    event = new()
    receive(event, signal(targets=Targets(devices=SNS[:1])))
    other = (shard_of(SNS[0]) + 1) % SHARDS
    tell(event, 1, shards=(other,), states=states(applied=1))
    assert not event.told


def test_r33_response_2_comes_once_at_the_start() -> None:
    event = new()
    receive(event, signal())
    assert event.advance(99.9, grace_s=GRACE) == []
    assert event.advance(100.0, grace_s=GRACE) == ["started"]
    assert event.advance(101.0, grace_s=GRACE) == []
    assert codes(event, 1) == [1, 2]


def test_r33_it_closes_when_every_shard_is_settled_and_then_every_shard_has_closed() -> None:
    event = new()
    receive(event, signal())
    sent(event)
    event.advance(100.0, grace_s=GRACE)
    tell(event, 1, states=states(applied=1))
    assert event.advance(200.0, grace_s=GRACE) == ["ending"]
    tell(event, 2, shards=tuple(range(SHARDS - 1)), states=states(verified=1), settled=True)
    assert event.advance(201.0, grace_s=GRACE) == [], "one shard is not settled"
    tell(event, 2, shards=(SHARDS - 1,), states=states(verified=1), settled=True)
    assert event.advance(202.0, grace_s=GRACE) == ["closing"]
    sent(event)
    tell(event, 3, shards=tuple(range(SHARDS - 1)), states=states(verified=1), settled=True, closed=True)
    assert event.advance(203.0, grace_s=GRACE) == [], "one shard has not closed"
    tell(event, 3, shards=(SHARDS - 1,), states=states(verified=1), settled=True, closed=True)
    assert event.advance(204.0, grace_s=GRACE) == ["closed"]
    assert codes(event, 1) == [1, 2, 3]
    assert event.keep_until == 200.0 + KEEP_S


def test_r33_after_the_grace_it_closes_anyway_without_the_shards_that_are_silent() -> None:
    event = new()
    receive(event, signal())
    sent(event)
    event.advance(100.0, grace_s=GRACE)
    tell(event, 1, shards=(3,), states=states(applied=1))
    assert event.advance(200.0 + GRACE - 0.1, grace_s=GRACE) == ["ending"]
    assert event.advance(200.0 + GRACE, grace_s=GRACE) == ["closing"]
    sent(event)
    tell(event, 2, shards=(3,), states=states(applied=1), closed=True)
    assert event.advance(200.0 + GRACE + CLOSE_WAIT_S - 0.1, grace_s=GRACE) == []
    assert event.advance(200.0 + GRACE + CLOSE_WAIT_S, grace_s=GRACE) == ["closed"]


def test_nothing_closes_before_the_shards_were_told_of_it() -> None:
    event = new()
    receive(event, signal())
    event.advance(100.0, grace_s=GRACE)
    event.advance(200.0 + GRACE, grace_s=GRACE)
    assert event.run is not None and event.run.closing_at is None


def test_a_correction_after_the_close_asks_for_a_further_report_that_must_not_be_lost() -> None:
    event = new()
    receive(event, signal())
    sent(event)
    assert event.run is not None
    event.run.state = "closed"
    tell(event, 9, shards=(1,), states=states(applied=1), closed=True)
    assert event.report_due and event.dirty and event.dirty_counts and event.busy
    assert event.advance(10_000.0, grace_s=GRACE) == []


@pytest.mark.parametrize(
    ("total", "test", "code"),
    [
        (Counts(), False, 10),
        (Counts(states=states(applied=2, verified=1)), False, 3),
        (Counts(states=states(applied=2, skipped=1)), False, 8),
        (Counts(states=states(verified=2, unconfirmed=1)), False, 8),
        (Counts(states=states(skipped=3)), False, 10),
        (Counts(states=states(rejected=3)), False, 10),
        (Counts(states=states(applied=3), held_at_end=3, won_at_end=0), False, 7),
        (Counts(states=states(skipped=3), held_at_end=3, won_at_end=0), False, 7),
        (Counts(states=states(applied=3), held_at_end=3, won_at_end=1), False, 3),
        (Counts(states=states(unused=3)), True, 3),
        (Counts(states=states(unused=1, skipped=2)), True, 3),
        (Counts(states=states(skipped=2)), True, 10),
        (Counts(), True, 10),
    ],
)
def test_r33_the_final_response_says_what_became_of_the_targeted(total: Counts, test: bool, code: int) -> None:
    assert outcome_code(total, test=test) == code


# ---------------------------------------------------------------------------------------------- selectors


@pytest.mark.parametrize(
    "targets",
    [Targets(all=True), Targets(groups=("f",)), Targets(sites=("s",), devices=SNS[:3]), Targets(areas=("a",))],
)
def test_whoever_cannot_be_placed_is_asked_of_all_shards(targets: Targets) -> None:
    assert addressed(targets) == tuple(range(SHARDS))


def test_named_devices_go_only_to_their_own_shards() -> None:
    event = new()
    what = signal(targets=Targets(devices=SNS))
    receive(event, what)
    assert event.run is not None
    made = selectors(what, event.run)
    assert set(made) == {shard_of(sn) for sn in SNS} == set(event.run.expected)
    assert sorted(sn for selector in made.values() for sn in selector.targets.devices) == sorted(SNS)
    for shard, selector in made.items():
        assert {shard_of(sn) for sn in selector.targets.devices} == {shard}


def test_a_selector_has_the_settled_window() -> None:
    event = new()
    what = signal(start_at=None, end_at=None, open_ended=True, targets=Targets(groups=("f",), devices=SNS[:1]))
    receive(event, what, 55.0)
    assert event.run is not None
    made = selectors(what, event.run)
    home = shard_of(SNS[0])
    assert made[home].targets.devices == SNS[:1]
    assert made[(home + 1) % SHARDS].targets == Targets(groups=("f",))
    for selector in made.values():
        assert (selector.start_at, selector.end_at, selector.accepted_at) == (55.0, 55.0 + DAY, 55.0)
        assert (selector.event, selector.revision, selector.controls) == ("west/e", 1, (CHARGE,))


def test_r02_a_narrower_revision_reaches_every_shard_of_the_one_it_replaces() -> None:
    event = Event(source="grid", event_id="a")
    everyone = signal(revision=1, targets=Targets(all=True))
    one = signal(revision=2, targets=Targets(devices=("9010KETU000W0001",)))
    for revision in (everyone, one):
        event.receive(revision, at=10.0, now=10.0, longest_s=86_400.0, objections=())
    assert event.run is not None and event.run.revision == 2
    assert event.run.expected == tuple(range(64))
    members = {s: sel.targets.devices for s, sel in selectors(one, event.run).items()}
    assert len(members) == 64 and sum(map(len, members.values())) == 1
