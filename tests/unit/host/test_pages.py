"""Pages have the holders they should have, contain what their keys say, and all come back."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from models import program

from alula.host.device import GoldenDevice
from alula.host.pages import CacheFull, Pages, page_key
from alula.host.session import Row, Session, SessionError
from alula.hw.arch import SIM
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS


class Owners(RuleBasedStateMachine):
    """Sequences that take, share, publish and give back pages, against a plain account of it."""

    def __init__(self):
        super().__init__()
        self.pages = Pages(3)
        self.sequences = []  # lists of (slot, key or None)
        self.written = {}  # (class, slot) -> the key of what a holder wrote there last

    @rule(count=st.integers(1, 12))
    def take(self, count):
        free = [self.pages.room(page_class) for page_class in range(PAGE_CLASSES)]
        wanted = Counter(number % PAGE_CLASSES for number in range(count))
        if any(free[page_class] < more for page_class, more in wanted.items()):
            with pytest.raises(CacheFull):
                self.pages.take(range(count))
            assert free == [self.pages.room(page_class) for page_class in range(PAGE_CLASSES)]
            return
        slots = self.pages.take(range(count))
        for number, slot in enumerate(slots):
            assert self.pages.holders(number, slot) == 1
            self.written.pop((number % PAGE_CLASSES, slot), None)
        self.sequences.append([(slot, None) for slot in slots])

    @rule(data=st.data(), stem=st.integers(0, 2))
    def publish(self, data, stem):
        fresh = [s for s in self.sequences if s and s[0][1] is None]
        if not fresh:
            return
        sequence = data.draw(st.sampled_from(fresh))
        keys = self._keys(stem, len(sequence))
        for number, (slot, _) in enumerate(list(sequence)):
            self.pages.publish(number, slot, keys[number])
            self.written[number % PAGE_CLASSES, slot] = keys[number]
            sequence[number] = slot, keys[number]

    @rule(stem=st.integers(0, 2), count=st.integers(1, 12))
    def find(self, stem, count):
        found = []
        for number, key in enumerate(self._keys(stem, count)):
            slot = self.pages.find(number, key)
            if slot is None:
                break
            assert self.written[number % PAGE_CLASSES, slot] == key
            found.append((slot, key))
        if found:
            self.sequences.append(found)

    @rule(data=st.data())
    def give_back(self, data):
        if self.sequences:
            sequence = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
            for number, (slot, _) in reversed(list(enumerate(sequence))):
                self.pages.release(number, slot)

    @rule()
    def clear(self):
        self.pages.clear()
        assert self.pages.kept == 0

    def _keys(self, stem, count):
        keys = []
        for number in range(count):
            keys.append(page_key([stem] * (count * PAGE_TOKENS), number, keys))
        return keys

    @invariant()
    def holders_are_right(self):
        held = Counter((number % PAGE_CLASSES, slot) for sequence in self.sequences
                       for number, (slot, _) in enumerate(sequence))
        assert held == Counter(self.pages._holders)
        for page_class in range(PAGE_CLASSES):
            owned = [slot for held_class, slot in held if held_class == page_class]
            free = [*self.pages._empty[page_class], *self.pages._kept[page_class]]
            assert sorted([*owned, *free]) == list(range(3))
        places = self.pages._places
        assert {place: key for key, place in places.items()} == self.pages._keys

    def teardown(self):
        for sequence in self.sequences:
            for number, (slot, _) in enumerate(sequence):
                self.pages.release(number, slot)
        assert self.pages.held == 0
        assert [self.pages.room(page_class) for page_class in range(PAGE_CLASSES)] == [3] * 8


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.fixture(scope="module")
def made():
    return program(SIM, layers=1, context=512, sequences=4)


def _filled(made, tokens):
    session = Session(GoldenDevice(made))
    first = session.open()
    session.feed(first, tokens)
    session.publish(first, tokens)
    return session, first


def test_adopted_pages_give_the_same_logits(made):
    tokens = [(3 * at) % 500 for at in range(3 * PAGE_TOKENS)]
    session, first = _filled(made, tokens)
    second = session.open()
    assert session.adopt(second, tokens) == 2 * PAGE_TOKENS  # one token is left to compute
    assert session.pages[second] == session.pages[first][:2]
    got = session.feed(second, tokens[2 * PAGE_TOKENS:])
    alone = Session(GoldenDevice(made))
    np.testing.assert_array_equal(got, alone.feed(alone.open(), tokens))


def test_pages_outlive_their_sequence(made):
    tokens = [(5 * at) % 500 for at in range(2 * PAGE_TOKENS + 5)]
    session, first = _filled(made, tokens)
    session.close(first)
    assert session.cache.held == 0 and session.cache.kept == 2
    second = session.open()
    assert session.adopt(second, tokens) == 2 * PAGE_TOKENS
    other = [*tokens[:PAGE_TOKENS], 1, *tokens[PAGE_TOKENS:]]
    third = session.open()
    assert session.adopt(third, other) == PAGE_TOKENS


def test_adopting_inside_a_page(made):
    session, _ = _filled(made, [2] * 200)
    second = session.open()
    session.feed(second, [2] * 10)
    assert session.adopt(second, [2] * 200) == 10
    third = session.open()
    session.reserve(third, 200)
    held = session.cache.held
    assert session.adopt(third, [2] * 200) == 3 * PAGE_TOKENS
    assert session.cache.held == held - 3  # its own were given back


def test_shared_page_written_wrong(made):
    tokens = [2] * (2 * PAGE_TOKENS)
    session, first = _filled(made, tokens)
    second = session.open()
    session.adopt(second, [*tokens, 3])
    with pytest.raises(SessionError, match="^position 70 of sequence 0 must not be written: other "
                                           "sequences share its page$"):
        session.step([Row(first, 1, 70)])
    session.close(second)
    session.step([Row(first, 1, 70, wants_logits=True)])  # its own again, and not to be found
    third = session.open()
    assert session.adopt(third, [*tokens, 3]) == PAGE_TOKENS
