"""Insert the tokens that order the queues: no one writes them by hand.

Within a queue instructions complete in order. Between queues, an instruction that must not start
before another ends is given a ``wait``, and the other a ``release``, unless what is known already
implies the order. What is known is tracked with vector clocks: for each instruction, how many
instructions of every queue are certain to have ended when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from alula.compiler.effects import effects
from alula.hw import isa
from alula.hw.isa import Instruction, Queue


@dataclass(eq=False)
class LoopBlock:
    """A loop's body, equal to itself only.

    One whose count is 0 or not immediate must be fenced by :data:`BARRIER`.
    """

    body: list[Item]
    count: int = 0
    source: isa.Count = isa.Count.IMMEDIATE


@dataclass(frozen=True)
class Barrier:
    """Everything before ends before anything after starts."""


Item = Instruction | LoopBlock | Barrier
BARRIER = Barrier()
_UNITS = tuple(queue for queue in Queue if queue is not Queue.SYS)


@dataclass
class _Slot:
    """An instruction's place in the program, and the tokens it was given."""

    instruction: Instruction | Barrier | None  # None: the end
    loops: tuple[LoopBlock, ...]
    wait: int = 0
    release: int = 0
    before: list[Instruction] = field(default_factory=list)  # Syncs to put in front

    @property
    def queue(self) -> Queue | None:
        found = self.instruction
        if found is None or isinstance(found, (Barrier, *isa.SEQUENCED)):
            return None
        return isa.runs_in(found)


Clock = list[int]  # instructions of each queue that have ended


class _Order:
    """Vector clocks along one run through the program, and the run's past of each queue."""

    def __init__(self) -> None:
        self.past: dict[Queue, list[tuple[_Slot, Clock]]] = {queue: [] for queue in Queue}
        self.last: dict[Queue, Clock] = {queue: [0] * len(Queue) for queue in Queue}

    def barrier(self) -> None:
        everything = [len(self.past[queue]) for queue in Queue]
        self.last = {queue: list(everything) for queue in Queue}

    def missing(self, slot: _Slot) -> list[tuple[Queue, int]]:
        """Return, newest first, the ``(queue, index)`` that must end before ``slot`` starts."""
        assert isinstance(slot.instruction, Instruction) and slot.queue is not None
        own = effects(slot.instruction)
        found = []
        for queue in Queue:
            if queue is slot.queue:
                continue
            known = self.last[slot.queue][queue]
            for index in range(len(self.past[queue]) - 1, known - 1, -1):
                earlier = self.past[queue][index][0].instruction
                assert isinstance(earlier, Instruction)
                if effects(earlier).conflicts(own):
                    found.append((queue, index))
                    break
        return found

    def join(self, queue: Queue, other: Queue, index: int) -> None:
        """Learn that instruction ``index`` of ``other`` has ended before ``queue`` goes on."""
        clock, theirs = self.last[queue], self.past[other][index][1]
        self.last[queue] = [max(a, b) for a, b in zip(clock, theirs, strict=True)]

    def push(self, slot: _Slot) -> None:
        queue = slot.queue
        assert queue is not None
        ended = list(self.last[queue])
        ended[queue] = len(self.past[queue]) + 1
        self.past[queue].append((slot, ended))
        self.last[queue] = ended


def schedule(items: list[Item]) -> list[Instruction]:
    """Return the program with loops flattened, barriers expanded and tokens inserted."""
    slots = [*_slots(items, ()), _Slot(None, ())]
    edges = _edges_within(slots)
    for source, target in edges:
        _connect(source, target, slots)
    for loop in _counted_loops(items):
        _close(loop, slots, edges)
    return list(_flatten(slots))


def _slots(items: list[Item], loops: tuple[LoopBlock, ...]) -> Iterator[_Slot]:
    for item in items:
        if isinstance(item, LoopBlock):
            inside = (*loops, item)
            yield _Slot(isa.Loop(source=item.source, count=item.count), inside[:-1])
            yield from _slots(item.body, inside)
            yield _Slot(isa.EndLoop(), inside)
        else:
            yield _Slot(item, loops)


def _edges_within(slots: list[_Slot]) -> list[tuple[_Slot, _Slot]]:
    """Return the orders to enforce along one run in which every loop runs once."""
    order, edges = _Order(), []
    for slot in slots:
        if isinstance(slot.instruction, Barrier):
            order.barrier()
        elif slot.queue is not None:
            edges += [(source, slot) for source in _take(order, slot)]
            order.push(slot)
    return edges


def _take(order: _Order, slot: _Slot) -> list[_Slot]:
    """Order ``slot`` after all it depends on; return the instructions it must wait for."""
    assert slot.queue is not None
    sources = []
    while missing := order.missing(slot):
        queue, index = missing[0]
        order.join(slot.queue, queue, index)
        sources.append(order.past[queue][index][0])
    return sources


def _connect(source: _Slot, target: _Slot, slots: list[_Slot]) -> None:
    """Give one token from ``source`` to ``target``; at a loop's border, just outside the loop."""
    assert source.queue is not None and target.queue is not None
    shared = _shared_loops(source, target)
    if len(source.loops) > shared:
        after = _index_after(source.loops[shared], slots)
        slots[after].before.append(isa.Sync(target=source.queue, release=1 << target.queue))
    else:
        source.release |= 1 << target.queue
    if len(target.loops) > shared:
        at = _index_of(target.loops[shared], slots)
        slots[at].before.append(isa.Sync(target=target.queue, wait=1 << source.queue))
    else:
        target.wait |= 1 << source.queue


def _shared_loops(a: _Slot, b: _Slot) -> int:
    shared = 0
    for one, two in zip(a.loops, b.loops, strict=False):
        if one is not two:
            break
        shared += 1
    return shared


def _index_of(loop: LoopBlock, slots: list[_Slot]) -> int:
    """Return the index of the loop's ``Loop`` instruction."""
    return next(i for i, slot in enumerate(slots) if loop in slot.loops) - 1


def _index_after(loop: LoopBlock, slots: list[_Slot]) -> int:
    """Return the index of what follows the loop's ``EndLoop``."""
    return max(i for i, slot in enumerate(slots) if loop in slot.loops) + 1


def _counted_loops(items: list[Item]) -> Iterator[LoopBlock]:
    for item in items:
        if isinstance(item, LoopBlock):
            if item.source is isa.Count.IMMEDIATE:
                yield item
            yield from _counted_loops(item.body)


def _close(loop: LoopBlock, slots: list[_Slot], edges: list[tuple[_Slot, _Slot]]) -> None:
    """Order an iteration after the one before, where their own tokens do not.

    One token for each pair of queues goes round the loop: given before it, taken after it. A pair
    of queues that already uses tokens inside the body has one for each order, if those are given
    after all others and taken before them; a pair cannot carry one that has a token that is given
    before the loop and taken after it. The iterations are then kept apart by a barrier; likewise
    if the order is one of an inner loop's instructions, whose tokens would be given in each of its
    passes.
    """
    body = [slot for slot in slots if loop in slot.loops]
    inside = {(id(a), id(b)) for a, b in edges}
    every = _carried(body, inside)
    first, last = _index_of(loop, slots), _index_after(loop, slots)
    place = {id(slot): at for at, slot in enumerate(slots)}
    pairs = {(a.queue, b.queue) for a, b in edges if loop in a.loops and loop in b.loops}
    across = {(a.queue, b.queue) for a, b in edges
              if place[id(a)] < first and place[id(b)] >= last}
    carried = [edge for found in every.values()
               for edge in (found if (found[0][0].queue, found[0][1].queue) in pairs
                            else [_strictest(found, place)])]
    inner = any(slot.loops[-1] is not loop for pair in carried for slot in pair)
    torn = any(place[id(a)] <= place[id(source)] or place[id(target)] <= place[id(b)]
               for a, b in carried for source, target in edges
               if (source.queue, target.queue) == (a.queue, b.queue)
               and loop in source.loops and loop in target.loops)
    if inner or torn or any((a.queue, b.queue) in across for a, b in carried):
        slots.insert(last - 1, _Slot(BARRIER, body[0].loops))
        return
    start, after = slots[first], slots[last]
    for source, target in carried:
        assert source.queue is not None and target.queue is not None
        source.release |= 1 << target.queue
        target.wait |= 1 << source.queue
        start.before.append(isa.Sync(target=source.queue, release=1 << target.queue))
        after.before.append(isa.Sync(target=target.queue, wait=1 << source.queue))


_Edges = list[tuple[_Slot, _Slot]]


def _strictest(edges: _Edges, place: dict[int, int]) -> tuple[_Slot, _Slot]:
    """Return the order that implies the others: from the last source to the first target."""
    return (max((a for a, _ in edges), key=lambda slot: place[id(slot)]),
            min((b for _, b in edges), key=lambda slot: place[id(slot)]))


def _carried(body: list[_Slot],
             inside: set[tuple[int, int]]) -> dict[tuple[Queue, Queue], _Edges]:
    """Return the orders that the next iteration needs, for each pair of queues."""
    order = _Order()
    found: dict[tuple[Queue, Queue], _Edges] = {}
    newest: dict[tuple[Queue, Queue], int] = {}
    for iteration in range(2):
        first: dict[int, int] = {}
        for slot in body:
            if isinstance(slot.instruction, Barrier):
                order.barrier()
                continue
            if slot.queue is None:
                continue
            for queue in Queue:
                for index in range(len(order.past[queue]) - 1, -1, -1):
                    source = order.past[queue][index][0]
                    if id(source) in first and (id(source), id(slot)) in inside:
                        order.join(slot.queue, queue, index)
                        break
            if iteration:
                for queue, index in order.missing(slot):
                    source, pair = order.past[queue][index][0], (queue, slot.queue)
                    if index > newest.get(pair, -1):
                        newest[pair] = index
                        found.setdefault(pair, []).append((source, slot))
            order.push(slot)
            first[id(slot)] = 1
    return found


def _flatten(slots: list[_Slot]) -> Iterator[Instruction]:
    for slot in slots:
        yield from slot.before
        if isinstance(slot.instruction, Barrier):
            yield from _expand_barrier()
        elif slot.instruction is not None:
            yield replace(slot.instruction, wait=slot.instruction.wait | slot.wait,
                          release=slot.instruction.release | slot.release)


def _expand_barrier() -> Iterator[Instruction]:
    everyone = sum(1 << queue for queue in _UNITS)
    for queue in _UNITS:
        yield isa.Sync(target=queue, release=1 << Queue.SYS)
    yield isa.Sync(target=Queue.SYS, wait=everyone, release=everyone)
    for queue in _UNITS:
        yield isa.Sync(target=queue, wait=1 << Queue.SYS)
