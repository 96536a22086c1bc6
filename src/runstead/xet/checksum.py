"""CRC-64/NVME, the checksum a client announces for the body of a xorb (wire-storage §5.1)."""

from collections.abc import Callable
from typing import cast

import anycrc

from runstead.xet.hashes import Buffer

_model = anycrc.Model("CRC64-NVME")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_calculate = cast("Callable[[Buffer, int | None], int]", _model.calc)  # pyright: ignore[reportUnknownMemberType]


def crc64nvme(data: Buffer, previous: int | None = None) -> int:
    """Return the checksum of `data`, or of all that gave `previous` with `data` behind it."""
    return _calculate(data, previous)
