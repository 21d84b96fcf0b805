"""How many threads kernels run on; results do not depend on it."""

from __future__ import annotations

import numba

from alula.host.cpu import compiled  # noqa: F401  (chooses what the threads are)


def use_threads(count: int | None = None) -> int:
    """Use so many threads, or one for each core; return how many."""
    most = numba.config.NUMBA_NUM_THREADS
    if count is not None and not 1 <= count <= most:
        raise ValueError(f"threads must be from 1 to {most}, the cores there are, not {count}")
    numba.set_num_threads(count or most)
    return count or most
