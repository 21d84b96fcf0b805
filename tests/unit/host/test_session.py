"""What a session does when a request has no room or makes no sense."""

import numpy as np
import pytest
from models import program

from alula.host.device import GoldenDevice
from alula.host.pages import CacheFull
from alula.host.session import Row, Session, SessionError
from alula.hw.arch import SIM
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS


@pytest.fixture(scope="module")
def made():
    return program(SIM, layers=1, context=1024, sequences=2)


def test_pages_refused_are_not_taken(made):
    """After a refusal for want of pages, a sequence holds none that the device does not know of."""
    session = Session(GoldenDevice(made))
    one, two = session.open(), session.open()
    session.feed(one, [5, 6, 7])
    taken = session.cache.take([2] * session.cache.room(2))
    before = [session.cache.room(page_class) for page_class in range(PAGE_CLASSES)]
    with pytest.raises(CacheFull, match="^the cache is full; close a sequence"):
        session.reserve(two, PAGE_CLASSES * PAGE_TOKENS)
    assert [session.cache.room(page_class) for page_class in range(PAGE_CLASSES)] == before
    for slot in taken:
        session.cache.release(2, slot)
    got = session.feed(two, [1, 2, 3])
    fresh = Session(GoldenDevice(made))
    np.testing.assert_array_equal(got, fresh.feed(fresh.open(), [1, 2, 3]))
    assert not np.array_equal(session.feed(one, [8]), session.feed(two, [8]))


@pytest.mark.parametrize("rows, repeats, message", [
    ([Row(1, 1, 0)], 1, "sequence 1 must be open"),
    ([Row(0, 1, -1)], 1, "a position must be at least 0, not -1"),
    ([Row(0, 1, 0), Row(0, 1, 1, 0)], 2, "with repeats, a step must have one row of each sequence"),
])
def test_rows_wrong(made, rows, repeats, message):
    session = Session(GoldenDevice(made))
    session.open()
    with pytest.raises(SessionError, match=f"^{message}$"):
        session.step(rows, repeats)


def test_context_can_be_filled(made):
    session = Session(GoldenDevice(made))
    sequence = session.open()
    session.feed(sequence, [3] * 1024)
    with pytest.raises(SessionError, match="^a sequence must have at most 1024 tokens, not 1025"):
        session.feed(sequence, [3])
