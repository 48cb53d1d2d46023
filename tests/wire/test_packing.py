"""Packing: what is put together with fewer copies is what msgpack would have made, and what it cannot make is told."""

import pytest

from pistage.core.commands_of_triggers import PutAfter
from pistage.core.triggers.settings import AfterRule
from pistage.errors import PistageError
from pistage.wire.packing import pack_command, pack_value, pack_with_bytes, unpack_value


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 300_000])
@pytest.mark.parametrize("values", [[], ["log", "a" * 26, "1", 1, 1 << 40, 7, 0], list(range(14))])
def test_bytes_behind_values_are_read_as_one_list(values: list[object], size: int) -> None:
    data = b"\xc6" * size
    assert unpack_value(pack_with_bytes(values, data)) == unpack_value(pack_value([*values, data])) == [*values, data]


DEEP: list[object] = []
for _ in range(2_000):
    DEEP = [DEEP]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", DEEP], ids=["large", "small", "no character", "deep"])
def test_a_command_that_no_entry_can_hold_is_refused(value: object) -> None:
    rule = AfterRule(afters=(), parameters={"n": value})
    command = PutAfter(at=1, id="a", project="p", owner="o", definition="d", source="", rule=rule)
    with pytest.raises(PistageError, match="a value that cannot be kept"):
        pack_command(command)
