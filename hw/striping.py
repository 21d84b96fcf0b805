"""Where a lane's bytes are in memory if several ports read them: :mod:`alula.hw.stripe`.

Each beat is cut into as many parts as there are ports. In every block of ``ports`` pages of 4 KiB,
page ``i`` has part ``i`` of all beats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096  # which no burst crosses: ARM IHI 0022, A3.4.1


def block_bytes(ports: int) -> int:
    """Return the unit that memory is arranged in, and which its address must be a multiple of."""
    return ports * PAGE_BYTES


def arrange(data: NDArray[np.uint8], ports: int, beat_bytes: int) -> NDArray[np.uint8]:
    """Return bytes of a lane as they lie in memory, padded with zeros to whole blocks.

    ``data`` is from an address that is a multiple of :func:`block_bytes`. With one port it is
    returned as it is.
    """
    if ports == 1:
        return data
    padded = np.zeros(-(-data.size // block_bytes(ports)) * block_bytes(ports), np.uint8)
    padded[:data.size] = data
    beats = padded.reshape(-1, block_bytes(ports) // beat_bytes, ports, beat_bytes // ports)
    return beats.transpose(0, 2, 1, 3).reshape(-1)
