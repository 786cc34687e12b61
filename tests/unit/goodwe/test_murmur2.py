"""The partition of a command is the default partitioner's."""

from __future__ import annotations

from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.goodwe.link import murmur2

SNS = st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=16, max_size=16).map(str.encode)


@given(st.lists(SNS, min_size=1, max_size=20))
def test_murmur2_is_kafkas(keys: list[bytes]) -> None:
    assert murmur2(keys).tolist() == [reference(key) & 0x7FFFFFFF for key in keys]
