"""A small cloud with chosen inverters, and requests for it, for the tests of this package."""

from __future__ import annotations

from typing import Any

import msgspec

from vpp_dispatch.simulator.cloud import Cloud, Outgoing
from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.faults import Faults
from vpp_dispatch.simulator.fleet import Device
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.profile import Profile, load_profile

MIDNIGHT = 1_795_305_600.0  # a UTC midnight
NOON = MIDNIGHT + 43_200
HYBRID, OTHER, PV_PERCENT, OLD = "9010KETU001W0001", "95000EHU001W0002", "9012KDTU001W0003", "95000ESU001W0004"
PROFILE = load_profile("goodwe")


def device(sn: str, **more: Any) -> Device:
    """A registered device with the rating of its SN."""
    rated_w = PROFILE.rating_of(sn)
    assert rated_w is not None
    return Device(sn=sn, site="site-0001", groups=("feeder-01",), area="west", rated_w=rated_w, **more)


def inverters(*devices: Device, now: float = NOON) -> Inverters:
    """Inverters with a house load of 1 kW and panels that peak at 80 % of the rating."""
    made = Inverters(profile=PROFILE, devices=devices, seed=1, now=now)
    made.load_fixed_w[:] = 1000
    made.pv_factor[:] = 0.8
    made.stored_wh[:] = made.capacity_wh / 2
    return made


class World:
    """A cloud, and what came out of it; latency 2 s (effect after 1) unless faults say otherwise."""

    def __init__(self, *devices: Device, seed: int = 1, profile: Profile = PROFILE, now: float = NOON) -> None:
        chosen = devices or tuple(device(sn) for sn in (HYBRID, OTHER, PV_PERCENT, OLD))
        made = Inverters(profile=profile, devices=chosen, seed=1, now=now)
        consent = Consent()
        for each in chosen:
            consent.add(each.sn, authorized_at=now)
        self.now = now
        self.cloud = Cloud(
            profile=profile,
            inverters=made,
            consent=consent,
            faults=Faults(seed=seed, results_per_command=profile.results_per_command),
            started_at=now,
        )
        self.cloud.faults.change({"latency_s": [2, 2]})
        self.out: list[Outgoing] = []
        self._offset = 0

    def send(self, correlation_id: str, sn: str, items: list[Any], role: str = "multi") -> None:
        """A request arrives now: (name, value) pairs, or names for a query."""
        written = items if role == "query" else [{"name": name, "value": value} for name, value in items]
        body = {"requestId": correlation_id, "sn": sn, "timestamp": 1}
        body |= {"parameter": written[0]} if role == "single" else {"parameters": written}
        self.send_bytes(msgspec.json.encode(body), role)

    def send_bytes(self, value: bytes, role: str = "multi") -> None:
        """A request arrives now, as it is."""
        self._offset += 1
        self.cloud.receive(
            role=role,
            value=value,
            topic=role,
            partition=0,
            offset=self._offset,
            arrival_at=self.now - 0.01,
            now=self.now,
        )

    def pass_s(self, seconds: float, step: float = 0.25) -> list[dict[str, Any]]:
        """Let time pass; returns the results that came out meanwhile."""
        came: list[Outgoing] = []
        for _ in range(round(seconds / step)):
            self.now += step
            came.extend(self.cloud.run(self.now))
        self.out.extend(came)
        return [each.body for each in came]

    def setting(self, sn: str, name: str) -> int:
        """A setting as it is latched."""
        made = self.cloud.inverters
        return int(made.settings[self.cloud.profile.column_of[name], made.row_of[sn]])

    def commands(self, sn: str) -> list[dict[str, Any]]:
        """The dump's commands of an SN."""
        listed: list[dict[str, Any]] = self.cloud.dump(self.now)["devices"][sn]["commands"]
        return listed


def charge(power_w: int) -> list[tuple[str, int]]:
    """Charge the battery."""
    return [("EMS Power Mode", 11), ("EMS Power Set", power_w)]


AUTO = [("EMS Power Mode", 1), ("EMS Power Set", 0)]
