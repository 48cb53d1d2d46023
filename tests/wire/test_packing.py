"""Packing: what is put together with fewer copies is what msgpack would have made."""

import pytest

from pistage.wire.packing import pack_value, pack_with_bytes, unpack_value


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 300_000])
@pytest.mark.parametrize("values", [[], ["log", "a" * 26, "1", 1, 1 << 40, 7, 0], list(range(14))])
def test_bytes_behind_values_are_read_as_one_list(values: list[object], size: int) -> None:
    data = b"\xc6" * size
    assert unpack_value(pack_with_bytes(values, data)) == unpack_value(pack_value([*values, data])) == [*values, data]
