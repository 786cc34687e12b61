"""Signals by hand: what is filled in, what is refused before it leaves, and in which words."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vpp_dispatch import topics
from vpp_dispatch.cli import main
from vpp_dispatch.domain.answer import Refusal
from vpp_dispatch.domain.signal import Form
from vpp_dispatch.errors import NotReachable
from vpp_dispatch.operators.messages import decode_signal
from vpp_dispatch.operators.signal import FORMS
from vpp_dispatch.operators.wire import epoch_seconds
from vpp_dispatch.settings import Settings

Sent = list[tuple[str, topics.Draft]]
BOUND = json.dumps({"west.signals": "gridco-west", "east.signals": "gridco-east"})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What would have been published."""
    found: Sent = []

    async def publish(settings: Settings, topic: str, drafts: Sequence[topics.Draft]) -> list[tuple[int, int]]:
        found.extend((topic, draft) for draft in drafts)
        return [(0, 7) for _ in drafts]

    monkeypatch.setattr(topics, "publish", publish)
    return found


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `signal send` with default settings, but for what is given."""
    for name in list(os.environ):
        if name.startswith("VPP_DISPATCH_"):
            monkeypatch.delenv(name)

    def run(*arguments: str, given: str | None = None, **variables: str) -> Result:
        env = {f"VPP_DISPATCH_{name}": value for name, value in variables.items()}
        return CliRunner().invoke(main, ["signal", "send", *arguments], input=given, env=env)

    return run


def body(result: Result) -> dict[str, Any]:
    """The signal as it was printed, which the service would take."""
    line = result.stdout.splitlines()[0]
    assert not isinstance(decode_signal(line.encode()), Refusal)
    return dict(json.loads(line))


def test_what_is_absent_and_can_be_known_is_filled_in(send: Callable[..., Result], sent: Sent) -> None:
    before = time.time()
    result = send("--control", "export-limit=1500", "--group", "feeder-03", "--for", "30m", "--priority", "10")
    assert result.exit_code == 0, result.output
    signal = body(result)
    assert signal["controls"] == [{"kind": "export_limit", "each_w": 1500}]
    assert (signal["source"], signal["revision"], signal["action"]) == ("operator", 1, "dispatch")
    assert signal["event_id"].startswith("export-limit-")
    assert signal["expires_at"] == signal["end_at"]
    assert before - 1 <= epoch_seconds(signal["created_at"]) <= time.time()
    assert 1799 <= epoch_seconds(signal["end_at"]) - epoch_seconds(signal["created_at"]) <= 1801
    [(topic, draft)] = sent
    assert (topic, draft.key.decode()) == ("dispatch.signals.v1", signal["event_id"])
    assert json.loads(draft.value or b"") == signal
    assert "export limit 1,500 W each, group feeder-03, now to" in result.stdout


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("charge=2000", {"kind": "charge", "each_w": 2000}),
        ("charge=2000W", {"kind": "charge", "each_w": 2000}),
        ("discharge=total:2000000", {"kind": "discharge", "total_w": 2_000_000}),
        ("standby", {"kind": "standby"}),
        ("generation_limit=60%", {"kind": "generation_limit", "each_percent": 60.0}),
        ("power_factor=0.95:over", {"kind": "power_factor", "cos_phi": 0.95, "excitation": "over"}),
    ],
)
def test_each_form_of_a_control(send: Callable[..., Result], text: str, control: dict[str, Any]) -> None:
    result = send("--control", text, "--all", "--for", "1h", "--dry-run")
    assert body(result)["controls"] == [control]


def test_a_dry_run_sends_nothing(send: Callable[..., Result], sent: Sent) -> None:
    result = send("--control", "standby", "--all", "--open-ended", "--start", "+5m", "--dry-run")
    assert result.exit_code == 0 and sent == []
    assert "Not sent (--dry-run)" in result.stdout
    signal = body(result)
    assert epoch_seconds(signal["expires_at"]) == pytest.approx(epoch_seconds(signal["start_at"]) + 3600, abs=0.01)


def test_a_file_is_completed_and_options_win(send: Callable[..., Result], sent: Sent, tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    table = [{"kind": "charge", "by_target_w": {"sites": {"site-1": 3000}}}]
    fields = {
        "event_id": "mine",
        "controls": table,
        "targets": {"sites": ["site-1"]},
        "open_ended": True,
        "priority": 9,
    }
    file.write_text(json.dumps(fields))
    result = send(str(file), "--for", "10m", "--priority", "3", "--revision", "4")
    assert result.exit_code == 0, result.output
    signal = body(result)
    assert (signal["event_id"], signal["priority"], signal["revision"]) == ("mine", 3, 4)
    assert signal["controls"] == table and "open_ended" not in signal and "end_at" in signal
    piped = send("-", given=json.dumps(fields | {"end_at": "2999-01-01T00:00:00Z", "open_ended": False}))
    assert piped.exit_code == 0 and body(piped)["expires_at"] == "2999-01-01T00:00:00Z"
    assert len(sent) == 2


def test_json_is_all_that_is_on_standard_output(send: Callable[..., Result], sent: Sent) -> None:
    result = send("--control", "standby", "--all", "--for", "1m", "--json")
    assert len(result.stdout.splitlines()) == 1 and body(result)
    assert "Sent to dispatch.signals.v1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Say what is asked"),
        (("--control", "charge=2000", "--all"), "needs end_at, or open_ended"),
        (("--control", "charge=2000", "--for", "1h"), "Say what is asked, of whom"),
        (("--control", "charge=2000", "--all", "--for", "1h", "--open-ended"), "--for and --open-ended contradict"),
        (("--control", "charge=2000", "--all", "--for", "1h", "--end", "+1h"), "--end and --for contradict"),
        (("--control", "charge=-5", "--all", "--for", "1h"), "greater than or equal to 0"),
        (("--control", "charge=1", "--control", "standby", "--all", "--for", "1h"), "two controls on one actuator"),
        (("--control", "heat=1", "--all", "--for", "1h"), "'heat' is no kind of control; there are charge"),
        (("--control", "charge=lots", "--all", "--for", "1h"), "'lots' is no value: write watts per device"),
        (("--control", "charge=1", "--all", "--for", "soon"), "'soon' is no length of time: write 90s"),
        (("--control", "charge=1", "--all", "--end", "11:00"), "must be an RFC 3339 time with offset"),
        (("--control", "charge=1", "--all", "--end", "2020-01-01T00:00:00Z"), "is over and the service would refuse"),
        (("--control", "charge=1", "--device", "nonsense", "--for", "1h"), "targets.devices.0"),
        (("--control", "charge=1", "--all", "--site", "s", "--for", "1h"), "and not both"),
        (("--control", "charge=1", "--all", "--for", "1h", "--priority", "300"), "0<=x<=255"),
        (("--control", "charge=1", "--all", "--for", "1h", "--colour", "red"), "No such option"),
        (("nowhere.json",), "nowhere.json"),
    ],
)
def test_wrong_input_is_2_and_a_sentence(
    send: Callable[..., Result], sent: Sent, arguments: tuple[str, ...], says: str
) -> None:
    result = send(*arguments)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.split())
    assert sent == [] and not result.stdout


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("[1]", "holds no JSON object"),
        ("{", "is no JSON in UTF-8"),
        ('{"revision": 1, "revision": 2}', "revision stands twice"),
        ('{"colour": "red"}', "colour is not a field of a signal"),
        ('{"reason": "\\ud800"}', "not Unicode"),
        ('{"start_at": 5}', "start_at must be an RFC 3339 time"),
        ('{"controls": "charge", "targets": {"all": true}, "end_at": "2999-01-01T00:00:00Z"}', "controls"),
    ],
)
def test_a_wrong_file_is_2_and_a_sentence(send: Callable[..., Result], sent: Sent, given: str, says: str) -> None:
    result = send("-", given=given)
    assert (result.exit_code, sent) == (2, []), result.output
    assert says in result.stderr


def test_the_source_decides_on_the_topic(send: Callable[..., Result], sent: Sent) -> None:
    asked = ("--control", "standby", "--all", "--for", "1m")
    several = send(*asked, SIGNALS__TOPICS=BOUND)
    assert several.exit_code == 2 and "--source (gridco-west, gridco-east)" in several.stderr
    foreign = send(*asked, "--source", "gridco-south", SIGNALS__TOPICS=BOUND)
    assert foreign.exit_code == 2 and "'gridco-south'" in foreign.stderr
    assert send(*asked, "--source", "gridco-east", SIGNALS__TOPICS=BOUND).exit_code == 0
    assert [topic for topic, _ in sent] == ["east.signals"]


def test_what_was_to_be_sent_is_on_standard_output_when_kafka_is_away(
    send: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def publish(*_: Any) -> list[tuple[int, int]]:
        raise NotReachable("Kafka at x cannot be used: start it.")

    monkeypatch.setattr(topics, "publish", publish)
    result = send("--control", "standby", "--all", "--for", "1m")
    assert result.exit_code == 1 and "start it" in result.stderr
    assert body(result)["controls"] == [{"kind": "standby"}]


# ---------------------------------------------------------------------------------------------- tables


def test_a_table_of_repeated_options_names_its_targets(send: Callable[..., Result]) -> None:
    entries = ("site:site-0001=3000", "site:site=odd:name=5000W", "device:9010KETU000W0001=1500")
    result = send(*(word for e in entries for word in ("--control", f"export_limit={e}")), "--for", "5m", "--dry-run")
    assert result.exit_code == 0, result.output
    signal = body(result)
    table = {"sites": {"site-0001": 3000, "site=odd:name": 5000}, "devices": {"9010KETU000W0001": 1500}}
    assert signal["controls"] == [{"kind": "export_limit", "by_target_w": table}]
    assert signal["targets"] == {"sites": ["site-0001", "site=odd:name"], "devices": ["9010KETU000W0001"]}
    assert "export limit by a table of 3" in result.stdout


@pytest.mark.parametrize(
    "content",
    [
        "site,device,w\nsite-0001,,3000\n,9010KETU000W0001,1500\n",
        "\ufeffW;SN;Site\r\n3000;;site-0001\r\n1500;9010KETU000W0001;\r\n",
        '{"sites": {"site-0001": 3000}, "devices": {"9010KETU000W0001": 1500}}',
    ],
)
def test_a_table_comes_from_a_csv_or_json_file(send: Callable[..., Result], tmp_path: Path, content: str) -> None:
    file = tmp_path / "table"
    file.write_text(content, encoding="utf-8")
    result = send("--control", f"charge=@{file}", "--for", "5m", "--dry-run")
    assert result.exit_code == 0, result.output
    table = {"sites": {"site-0001": 3000}, "devices": {"9010KETU000W0001": 1500}}
    assert body(result)["controls"] == [{"kind": "charge", "by_target_w": table}]
    named = send("--control", f"charge=@{file}", "--area", "west", "--for", "5m", "--dry-run")
    assert body(named)["targets"] == {"areas": ["west"]}, "whom it is for may be said besides"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "has the columns (none)"),
        (b"site,watts\n", "has the columns site, watts"),
        (b"site,w\n", "has no row"),
        (b"site,w\na,1\nb,1 kW\n", "line 3: w is '1 kW'"),
        (b"site,w\na,1\na,2\n", "line 3: a stands there twice"),
        (b"site,device,w\na,b,1\n", "line 2: it has to name one site or one device"),
        (b"site,w\n,1\n", "line 2: it has to name one site or one device"),
        (b'{"sites": {"a": 1}, "places": {}}', "it has sites, places"),
        (b'{"sites": {"a": 1, "a": 2}}', "a stands twice"),
        (b'{"sites": ', "it cannot be read"),
        (b'{"sites": {"a": -1}}', "greater than or equal to 0"),
    ],
)
def test_a_table_that_cannot_be_used_is_2_with_its_line(
    send: Callable[..., Result], sent: Sent, tmp_path: Path, content: bytes | None, says: str
) -> None:
    file = tmp_path / "table.csv"
    if content is not None:
        file.write_bytes(content)
    result = send("--control", f"charge=@{file}", "--all", "--for", "5m")
    assert (result.exit_code, sent) == (2, []), result.output
    assert says in " ".join(result.stderr.split())


def test_one_name_twice_in_a_table_is_2(send: Callable[..., Result], sent: Sent) -> None:
    result = send("--control", "charge=site:a=1", "--control", "charge=site:a=2", "--for", "5m")
    assert (result.exit_code, sent) == (2, []) and "a stands twice in the table of charge" in result.stderr


def test_several_controls_ramps_test_and_priority_in_one_signal(send: Callable[..., Result], sent: Sent) -> None:
    controls = ("discharge=2000", "export_limit=5000", "generation_limit=60%", "power_factor=0.95:under")
    options = ("--for", "1h", "--ramp-up", "5m", "--ramp-down", "90s", "--priority", "7", "--test")
    result = send(*(word for c in controls for word in ("--control", c)), "--all", *options)
    assert result.exit_code == 0, result.output
    signal = body(result)
    assert [c["kind"] for c in signal["controls"]] == [c.partition("=")[0] for c in controls]
    assert (signal["ramp_up_s"], signal["ramp_down_s"], signal["priority"], signal["test"]) == (300, 90, 7, True)
    assert "discharge 2,000 W each, export limit 5,000 W each, generation limit 60 %, power factor 0.95 under" in (
        result.stdout
    )


def test_every_kind_takes_every_form_that_the_contract_has(send: Callable[..., Result]) -> None:
    texts = {
        Form.NONE: "", Form.EACH_W: "=5", Form.BY_TARGET_W: "=site:a=5", Form.TOTAL_W: "=total:5",
        Form.EACH_PERCENT: "=5%", Form.COS_PHI: "=0.9:over",
    }  # fmt: skip
    for kind, forms in FORMS.items():
        for form, text in texts.items():
            result = send("--control", f"{kind.value}{text}", "--site", "a", "--for", "5m", "--dry-run")
            assert result.exit_code == (0 if form in forms else 2), (kind, form, result.output)


# ---------------------------------------------------------------------------------------------- release


@pytest.fixture
def release(send: Callable[..., Result]) -> Callable[..., Result]:
    def run(*arguments: str, **variables: str) -> Result:
        env = {f"VPP_DISPATCH_{name}": value for name, value in variables.items()}
        return CliRunner().invoke(main, ["signal", "release", *arguments], env=env)

    return run


def test_r15_a_release_is_a_signal_of_its_own(release: Callable[..., Result], sent: Sent) -> None:
    before = time.time()
    options = ("--site", "s", "--device", "9010KETU000W0001", "--reason", "owner called", "--ramp-down", "5m")
    result = release("gridco-west/rel-1", *options, SIGNALS__TOPICS=BOUND)
    assert result.exit_code == 0, result.output
    signal = body(result)
    assert signal["targets"] == {"devices": ["9010KETU000W0001"], "sites": ["s"]}
    assert (signal["action"], signal["event_id"], signal["source"], signal["revision"]) == (
        "release", "rel-1", "gridco-west", 1,
    )  # fmt: skip
    assert (signal["reason"], signal["ramp_down_s"]) == ("owner called", 300)
    assert 599 <= epoch_seconds(signal["expires_at"]) - before <= 605
    assert [topic for topic, _ in sent] == ["west.signals"]
    assert "release, inverter 9010KETU000W0001 and site s (owner called)" in result.stdout


def test_a_release_without_a_name_gets_one(release: Callable[..., Result], sent: Sent) -> None:
    signal = body(release("--all", "--expires-in", "1h", "--dry-run"))
    assert signal["event_id"].startswith("release-") and signal["targets"] == {"all": True} and sent == []
    assert body(release("mine", "--all", "--source", "s", "--dry-run"))["event_id"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Say what is to be released"),
        (("a/b", "--source", "c", "--all"), "name two sources"),
        (("--all", "--site", "s"), "and not both"),
        (("--device", "nonsense"), "targets.devices.0"),
        (("--all", "--expires-in", "soon"), "'soon' is no length of time"),
        (("/b", "--all"), "source"),
    ],
)
def test_a_wrong_release_is_2_and_sends_nothing(
    release: Callable[..., Result], sent: Sent, arguments: tuple[str, ...], says: str
) -> None:
    result = release(*arguments)
    assert (result.exit_code, sent) == (2, []), result.output
    assert says in " ".join(result.stderr.split())
