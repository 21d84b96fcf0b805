"""Random programs: legal by construction, and proven so before they are returned."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np

from alula.compiler.program import Program
from alula.compiler.schedule import BARRIER, Item, LoopBlock
from alula.hw import isa, layout, numerics
from alula.hw.arch import ArchConfig
from alula.hw.isa import BLOCK, WORD_BYTES, Count, Format, Index, Queue
from programs.assembly import Assembly
from programs.values import floats, fp_bits, matrix

LATE_WORDS = 1024  # of each row, for what is stored before the end
ATTENTION_COST = 60_000  # most clocks that one attention may take, roughly


@dataclass
class Region:
    """Codes in the activation buffer: ``groups`` groups of ``group`` from a block on."""

    block: int
    group: int
    groups: int
    inputs: int


@dataclass
class Loop:
    """A loop being generated: what its passes use one after the other."""

    count: int
    stream_register: int
    param_register: int
    streams: list[tuple[int, int, int]] = field(default_factory=list)  # outputs, inputs, group
    params: list[int] = field(default_factory=list)  # sizes


@dataclass(frozen=True)
class Rows:
    """A step: header fields and rows, and where its sequences' pages are."""

    header: np.ndarray
    rows: np.ndarray
    pages: np.ndarray  # (sequences, pages) cache slots

    @property
    def count(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Case:
    """A program and the steps to run, one after the other."""

    seed: int
    program: Program
    steps: list[Rows]
    layers: list[tuple[int, int, int]]  # first word in a slot, heads of keys, their size
    hostile_cache: bool

    def __repr__(self) -> str:
        return f"seed {self.seed}"


class Generator:
    """Makes one case from a seed.

    Parameters
    ----------
    rows
        Rows of the steps; any number if not given.
    only
        Names of the operations to use; all if not given.
    most
        Operations, for looking at what goes wrong first.
    """

    def __init__(self, seed: int, arch: ArchConfig, *, rows: int | None = None,
                 only: tuple[str, ...] = (), most: int = 100) -> None:
        self.seed, self.arch, self.only, self.most = seed, arch, only, most
        self.random = chooser = random.Random(seed)
        self.blocks = min(64, arch.vector_elements // BLOCK)  # of the vector buffer
        self.param_blocks = min(32, arch.param_elements // BLOCK)
        self.code_blocks = min(128, arch.activation_elements // BLOCK)
        self.greedy = chooser.random() < 0.35  # steps without the host: all rows are roots
        self.pages = chooser.choice([1, 2, 2, 3, 10])
        self.pages = min(self.pages, arch.page_entries // arch.rows)
        self.most_rows = min(rows or chooser.choice([1, 1, 2, 3, 4, 5, 8, 16]), arch.rows)
        self.exact_rows = rows is not None
        self.assembly = Assembly(
            arch, vocab=chooser.choice([17, 40, 150, 300]),
            context=self.pages * numerics.PAGE_TOKENS, sequences=self.most_rows + 2,
            repeats=chooser.choice([1, 4]) if self.greedy else 1,
            row_words=self.blocks * BLOCK // 4 + LATE_WORDS)
        self.free = list(range(1, isa.ADDRESS_REGISTERS))
        self.loops: list[Loop] = []
        self.regions: list[Region] = []
        self.layers: list[tuple[int, int, int]] = []

    def case(self) -> Case:
        chooser, assembly = self.random, self.assembly
        for _ in range(chooser.choice([1, 1, 2])):
            self._layer()
        body = self._fill()
        for at in range(chooser.randint(6, 14)):
            body += self._operation() if at < self.most else []
        items: list[Item] = [isa.ReadStep(register=0, offset=0), BARRIER]
        dump = isa.StoreRow(register=0, offset=0, source=0, size=self.blocks * BLOCK,
                            stride=self.blocks * BLOCK // 4)
        if self.greedy:
            advance: list[Item] = [isa.Advance(), BARRIER]
            if chooser.random() < 0.5:
                advance = [LoopBlock(advance, source=Count.HEAD), BARRIER]
            body += [BARRIER, *advance, dump, BARRIER]
            items.append(LoopBlock(body, source=Count.REPEATS))
        else:
            items += [*body, dump]
        assembly.items = [*items, BARRIER, isa.End()]
        if not assembly.streams:  # a directory has an entry
            assembly.streams.append(matrix(chooser, 16, 16, 16))
        program = assembly.program()
        steps = [self._step(program) for _ in range(chooser.choice([1, 1, 2]))]
        return Case(self.seed, program, steps, self.layers, chooser.random() < 0.2)

    # Places.

    def _place(self, blocks: int, *others: tuple[int, int]) -> int:
        """Return the first block of a run that none of the others, (block, blocks), touches."""
        for _ in range(200):
            at = self.random.randint(0, self.blocks - blocks)
            if all(at + blocks <= first or first + size <= at for first, size in others):
                return at
        raise _NoRoom

    def _size(self, most: int) -> int:
        chooser = self.random
        return chooser.choice([chooser.randint(1, most), 16 * chooser.randint(1, most // 16)])

    def _codes(self, blocks: int, unit: int) -> int:
        """Return a place for codes, at a multiple of ``unit`` blocks."""
        return unit * self.random.randint(0, (self.code_blocks - blocks) // unit)

    # What is there before the first operation.

    def _fill(self) -> list[Item]:
        """Give every buffer that operations read something to read."""
        chooser, items, at = self.random, [], 0
        while at < self.blocks:
            blocks = min(chooser.choice([8, 16, 24, 64]), self.blocks - at)
            items.append(self._table_row(at, blocks * BLOCK))
            at += blocks
        size = self.param_blocks * BLOCK
        items.append(isa.LoadParams(register=0, offset=self.assembly.param(
            fp_bits(chooser, size)), target=0, size=size))
        items.append(isa.SelectTop(source=0, size=0, register=0, offset=0, limit=0, clear=1))
        return items

    def _table_row(self, target: int, size: int) -> isa.LoadRow:
        """Return a load of a random table's rows."""
        chooser, assembly = self.random, self.assembly
        index = chooser.choice(list(Index)) if size <= 512 else Index.TOKEN
        kind = chooser.choice(list(Format))
        group_log2 = chooser.randint(4, 8)
        count = assembly.vocab if index is Index.TOKEN else assembly.context
        generator = np.random.default_rng(chooser.randrange(1 << 30))
        distinct = min(count, 40)  # rows; further ones repeat them
        if kind is Format.F32:
            rows = fp_bits(chooser, distinct * size).reshape(distinct, size).view(np.uint8)
        elif kind is Format.F16:
            with np.errstate(over="ignore"):
                halves = (floats(chooser, distinct * size).astype("<f2") if chooser.random() < 0.8
                          else generator.integers(0, 1 << 16, distinct * size, np.uint16))
            rows = halves.reshape(distinct, size).view(np.uint8)
        else:
            groups = -(-size // (1 << group_log2))
            scales = np.zeros((distinct, -(-groups // 4) * 4), np.uint32)
            scales[:, :groups] = fp_bits(chooser, distinct * groups).reshape(distinct, groups)
            code_bytes = -(-size // 2) if kind is Format.Q4 else size
            codes = generator.integers(0, 256, (distinct, code_bytes)).astype(np.uint8)
            rows = np.concatenate([scales.view(np.uint8), codes], axis=1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % WORD_BYTES
                                      + WORD_BYTES * chooser.choice([0, 0, 1, 3]))))
        rows = rows[np.arange(count) % distinct]
        return isa.LoadRow(register=0, offset=assembly.table(rows), target=target, size=size,
                           stride=rows.shape[1] // WORD_BYTES, index=index, format=kind,
                           group_log2=group_log2)

    def _layer(self) -> None:
        """Add a layer to the cache, of a shape that the build can attend to."""
        chooser, arch = self.random, self.arch
        while True:
            kv_heads = chooser.choice([1, 1, 2, 3, 4])
            head_dim = chooser.choice([16, 32, 48, 64, 80, 96, 128, 160, 240])
            half = (8 + head_dim) * numerics.PAGE_TOKENS // arch.beat_bytes
            if (kv_heads * head_dim <= 256 and half <= arch.prefetch_beats // 2
                    and 3 * kv_heads * head_dim <= self.code_blocks * BLOCK):
                break
        self.layers.append((self.assembly.layer(kv_heads, head_dim), kv_heads, head_dim))

    # Operations.

    KINDS = ("linear", "linear", "linear", "quantize", "combine", "combine", "activate",
             "activate", "rms_norm", "rotate", "rotate", "select_top", "store_row", "store_top",
             "load_row", "load_params", "attention", "attention", "loop", "loop", "head", "sync",
             "barrier", "registers", "nest", "read_step")
    OUTERMOST = ("head", "halves", "read_step")  # not in a loop that is counted

    def _operation(self) -> list[Item]:
        while True:
            kind = self.random.choice(self.only or self.KINDS)
            if self.loops and (kind in self.OUTERMOST or len(self.loops) > 2 and kind == "loop"):
                continue
            try:
                return getattr(self, f"_{kind}")()
            except _NoRoom:
                continue

    def _linear(self) -> list[Item]:
        """Some products: their streams are loaded first."""
        chooser, items, loads = self.random, [], []
        for _ in range(chooser.choice([1, 1, 1, 2, 3])):
            region, made = self._region()
            items += made
            outputs = self._size(chooser.choice([16, 64, 64, 300]))
            group_log2 = region.group.bit_length() - 1
            register, offset = self._stream(outputs, region.inputs, region.group, items)
            loads.append(isa.LoadStream(register=register, offset=offset))
            items.append(isa.Linear(
                target=self._place(-(-outputs // BLOCK)), source=region.block, outputs=outputs,
                inputs=region.inputs, group_log2=group_log2))
        if chooser.random() < 0.5:
            return [*loads, *items]
        order = iter(loads)
        return [step for item in items for step in (
            [next(order), item] if isinstance(item, isa.Linear) else [item])]

    def _stream(self, outputs: int, inputs: int, group: int,
                items: list[Item]) -> tuple[int, int]:
        """Add a matrix, or one for each pass of the loop; return what its load's operands are."""
        chooser, streams = self.random, self.assembly.streams
        if self.loops:
            loop = self.loops[-1]
            loop.streams.append((outputs, inputs, group))
            return loop.stream_register, len(loop.streams) - 1
        streams.append(matrix(chooser, outputs, inputs, group))
        return 0, len(streams) - 1

    def _region(self) -> tuple[Region, list[Item]]:
        """Return codes: some that are there, or fresh ones."""
        chooser = self.random
        usable = [region for region in self.regions
                  if region.group in (16, 32, 64, 128, 256)
                  and region.block % (region.group // BLOCK) == 0]
        if usable and chooser.random() < 0.4:
            return chooser.choice(usable), []
        group = chooser.choice([16, 32, 64, 128, 256])
        return self._quantized(group, group // BLOCK)

    def _quantized(self, group: int, unit: int) -> tuple[Region, list[Item]]:
        chooser = self.random
        most = min(self.blocks, self.code_blocks) * BLOCK
        inputs = self._size(chooser.choice([group, most // 4, most]))
        groups = -(-inputs // group)
        blocks = groups * group // BLOCK
        if blocks > self.code_blocks:
            raise _NoRoom
        region = Region(self._codes(blocks, unit), group, groups, inputs)
        self._forget(region.block, blocks)
        self.regions.append(region)
        return region, [isa.Quantize(
            target=region.block, source=self._place(-(-inputs // BLOCK)), size=inputs,
            group=group, scale=chooser.choice([1.0, 1.0, 0.18, -3e-30, 1e25]))]

    def _forget(self, block: int, blocks: int) -> None:
        self.regions = [region for region in self.regions
                        if region.block + region.groups * region.group // BLOCK <= block
                        or block + blocks <= region.block]

    def _quantize(self) -> list[Item]:
        chooser = self.random
        group = 16 * chooser.choice([1, 2, 3, 4, 5, 8, 12, 16, 31])
        return self._quantized(group, 1)[1]

    def _combine(self) -> list[Item]:
        chooser = self.random
        size = self._size(336)
        blocks = -(-size // BLOCK)
        shared = chooser.randrange(2)
        if blocks > self.param_blocks:
            shared = 0
        source = self._place(blocks)
        other = (chooser.randint(0, self.param_blocks - blocks) if shared
                 else self._other(source, blocks))
        target = chooser.choice([source, *([] if shared else [other]), None])
        spans = [(source, blocks), *([] if shared else [(other, blocks)])]
        if target is None or any(abs(target - at) % 10_000 and abs(target - at) < blocks
                                 for at, _ in spans):
            target = self._place(blocks, *spans)
        return [isa.Combine(target=target, source=source, other=other, shared=shared, size=size,
                            function=chooser.choice(list(isa.Elementwise)))]

    def _other(self, first: int, blocks: int) -> int:
        """Return the place of a second operand: apart from the first, the same, or overlapping."""
        return self.random.choice([first, self._place(blocks), self._place(blocks)])

    def _activate(self) -> list[Item]:
        chooser = self.random
        size = self._size(336)
        blocks = -(-size // BLOCK)
        source = self._place(blocks)
        gated = chooser.randrange(2)
        other = self._place(blocks, (source, blocks))
        target = chooser.choice([source, other, self._place(blocks, (source, blocks),
                                                            (other, blocks))])
        return [isa.Activate(target=target, source=source, other=other, gated=gated, size=size,
                             function=chooser.choice(list(isa.Function)))]

    def _rms_norm(self) -> list[Item]:
        chooser = self.random
        parts = chooser.choice([1, 1, 2, 3, 5])
        size = self._size(480) if parts == 1 else 16 * chooser.randint(1, 30 // parts)
        blocks = -(-size // BLOCK) * parts
        source = self._place(blocks)
        target = chooser.choice([source, self._place(blocks, (source, blocks))])
        return [isa.RmsNorm(
            target=target, source=source,
            gamma=chooser.randint(0, self.param_blocks - -(-size // BLOCK)), size=size,
            parts=parts, eps=chooser.choice([1e-5, 1e-6, 0.0, 1e30]))]

    def _rotate(self) -> list[Item]:
        chooser = self.random
        interleaved = chooser.randrange(2)
        unit = 16 if interleaved else 32
        head = 16 * chooser.choice([1, 2, 2, 3, 4, 8] if interleaved else [2, 2, 3, 4, 8])
        rotary = unit * chooser.randint(1, head // unit)
        heads = chooser.randint(1, max(1, 320 // head))
        blocks, tables = head * heads // BLOCK, 2 * -(-rotary // 2 // BLOCK)
        source = self._place(blocks)
        target = chooser.choice([source, self._place(blocks, (source, blocks))])
        cos = self._place(tables, (target, blocks))
        return [isa.Rotate(target=target, source=source, cos=cos, heads=heads, head_dim=head,
                           rotary_dim=rotary, interleaved=interleaved)]

    def _select_top(self) -> list[Item]:
        chooser, vocab = self.random, self.assembly.vocab
        size = chooser.choice([0, self._size(900), self._size(300)])
        first = chooser.choice([0, 0, chooser.randrange(vocab), vocab, 5000])
        limit = chooser.choice([vocab, vocab, chooser.randrange(vocab + 1)])
        address, items = self._based(first)
        return [*items, isa.SelectTop(
            source=self._place(-(-size // BLOCK)) if size else 0, size=size, limit=limit,
            clear=chooser.randrange(2), **address)]

    def _based(self, address: int) -> tuple[dict[str, int], list[Item]]:
        """Return a register and an offset that add up to an address, and what sets the register."""
        chooser = self.random
        if not self.free or chooser.random() < 0.4:
            return {"register": 0, "offset": address}, []
        register, value = chooser.choice(self.free), chooser.randrange(address + 1)
        first = chooser.randrange(value + 1)
        return {"register": register, "offset": address - value}, [
            isa.SetAddress(register=register, value=first),
            *([isa.AddAddress(register=register, value=value - first)] if value > first else [])]

    def _store_row(self) -> list[Item]:
        chooser = self.random
        size = 16 * chooser.randint(1, self.blocks)
        words = size // 4
        rows = self.arch.rows
        start = rows * self.blocks * BLOCK // 4
        room = rows * (self.blocks * BLOCK // 4 + LATE_WORDS) - start
        widest = min((room - words) // max(rows - 1, 1), 2 * words)
        stride = chooser.randint(words, max(words, widest))
        span = (rows - 1) * stride + words
        if span > room:
            raise _NoRoom
        offset = start + chooser.randint(0, room - span)
        address, items = self._based(offset)
        return [*items, isa.StoreRow(source=self._place(size // BLOCK), size=size, stride=stride,
                                     **address)]

    def _store_top(self) -> list[Item]:
        words = self.arch.rows * layout.TOP_ROW.itemsize // WORD_BYTES
        place = self.random.randrange(self.assembly.repeats)
        address, items = self._based(place * words)
        return [*items, isa.StoreTop(**address)]

    def _load_row(self) -> list[Item]:
        size = self._size(336)
        load = self._table_row(self._place(-(-size // BLOCK)), size)
        address, items = self._based(load.offset)
        return [*items, replace(load, **address)]

    def _load_params(self) -> list[Item]:
        chooser = self.random
        size = chooser.choice([0, self._size(BLOCK * self.param_blocks)])
        target = chooser.randint(0, self.param_blocks - -(-size // BLOCK))
        if self.loops:
            loop = self.loops[-1]
            offset = sum(-(-4 * size // WORD_BYTES) for size in loop.params)
            loop.params.append(size)
            return [isa.LoadParams(register=loop.param_register, offset=offset, target=target,
                                   size=size)]
        offset = self.assembly.param(fp_bits(chooser, size))
        return [isa.LoadParams(register=0, offset=offset, target=target, size=size)]

    def _attention(self) -> list[Item]:
        chooser, arch = self.random, self.arch
        first, kv_heads, head_dim = chooser.choice(self.layers)
        ratio = chooser.choice([1, 1, 2, 3, 4, 8])
        heads = kv_heads * ratio
        queries, keys = heads * head_dim // BLOCK, kv_heads * head_dim // BLOCK
        pieces = -(-head_dim // arch.beat_bytes)
        cost = self.most_rows * heads * self.pages * (128 * pieces + 400)
        # The build's limits, as sim.rtl.limits has them.
        if (queries > self.blocks or queries + 2 * keys > self.code_blocks - 16
                or arch.rows * ratio > arch.attention_queries
                or arch.rows * ratio * head_dim > arch.attention_elements
                or (arch.lanes > 1 and layout.units(kv_heads)
                    % (arch.lanes * numerics.PAGE_CLASSES)
                    and arch.rows * heads * head_dim > arch.merge_elements)
                or cost > ATTENTION_COST):
            raise _NoRoom
        unit = min(head_dim & -head_dim, 256) // BLOCK
        places: list[tuple[int, int]] = []
        for blocks in (queries, keys, keys):
            for _ in range(200):
                at = self._codes(blocks, unit)
                if all(at + blocks <= start or start + size <= at for start, size in places):
                    break
            else:
                raise _NoRoom
            places.append((at, blocks))
            self._forget(at, blocks)
        (query, _), (key, _), (value, _) = places
        scale = chooser.choice([1.0, 0.25, 1.4426950408889634 * head_dim**-0.5, 30.0])
        window = chooser.choice([0, 0, 1, chooser.randint(1, 200), 64])
        shape = {"kv_heads": kv_heads, "head_dim": head_dim}
        quantize: list[Item] = [isa.Quantize(
            target=at, source=self._place(blocks), size=blocks * BLOCK, group=head_dim,
            scale=factor) for (at, blocks), factor in zip(places, (scale, 1.0, 1.0), strict=True)]
        address, before = self._based(first)
        store: list[Item] = [isa.StoreKeyValue(key=key, value=value, **shape, **address)
                             ] if chooser.random() < 0.8 else []
        load = isa.LoadPages(window=window, **shape, **address)
        attend = isa.Attend(target=self._place(queries), query=query, key=key, value=value,
                            heads=heads, window=window, **shape)
        return [*before, *chooser.choice([[*quantize, *store, load, attend],
                                          [load, *quantize, *store, attend],
                                          [*quantize, load, attend, *store]])]

    # Control.

    def _loop(self) -> list[Item]:
        """A counted loop, whose products and parameters differ from pass to pass."""
        chooser, assembly = self.random, self.assembly
        if len(self.free) < 4:
            raise _NoRoom
        chooser.shuffle(self.free)
        loop = Loop(chooser.choice([0, 1, 2, 2, 3]), self.free.pop(), self.free.pop())
        self.loops.append(loop)
        known = list(self.regions)
        body: list[Item] = []
        for _ in range(chooser.randint(1, 4)):
            body += self._operation()
        self.loops.pop()
        # Codes made in a body that may not run are not there after it.
        self.regions = [region for region in known if region in self.regions]
        first = len(assembly.streams)
        for _ in range(max(loop.count, 1)):
            assembly.streams += [matrix(chooser, *stream) for stream in loop.streams]
        start = None
        for _ in range(max(loop.count, 1)):
            for size in loop.params:
                at = assembly.param(fp_bits(chooser, size))
                start = at if start is None else start
        words = sum(-(-4 * size // WORD_BYTES) for size in loop.params)
        before: list[Item] = [isa.SetAddress(register=loop.stream_register, value=first),
                              isa.SetAddress(register=loop.param_register, value=start or 0)]
        body += [isa.AddAddress(register=loop.stream_register, value=len(loop.streams)),
                 isa.AddAddress(register=loop.param_register, value=words)]
        self.free += [loop.stream_register, loop.param_register]
        fence = [] if loop.count else [BARRIER]
        return [*before, *fence, LoopBlock(body, count=loop.count), *fence]

    def _nest(self) -> list[Item]:
        """Loops as deep as they go from here."""
        depth = isa.LOOP_DEPTH - len(self.loops) - self.greedy
        items = self._combine()
        for _ in range(self.random.choice([2, depth])):
            items = [LoopBlock([*items, *(self._registers() if self.random.random() < 0.3 else [])],
                               count=self.random.choice([1, 1, 1, 2]))]
        return items

    def _head(self) -> list[Item]:
        """What runs only if a row wants its logits."""
        known = list(self.regions)
        body: list[Item] = []
        for _ in range(self.random.randint(1, 3)):
            kind = self.random.choice(("combine", "store_top", "select_top", "store_row",
                                       "activate", "linear"))
            try:
                body += getattr(self, f"_{kind}")()
            except _NoRoom:
                continue
        self.regions = [region for region in known if region in self.regions]
        return [BARRIER, LoopBlock(body, source=Count.HEAD), BARRIER]

    def _halves(self) -> list[Item]:
        """What runs for one half of the rows, then for the other; sometimes for all instead."""
        known, chooser = list(self.regions), self.random
        whole = chooser.random() < 0.2
        body: list[Item] = []
        for _ in range(chooser.randint(2, 5)):
            kind = chooser.choice(("combine", "activate", "rms_norm", "rotate", "quantize",
                                   "linear", "linear", "attention", "attention"))
            try:
                items = getattr(self, f"_{kind}")()
            except _NoRoom:
                continue
            for rows in [isa.Rows.ALL] if whole else [isa.Rows.FIRST, isa.Rows.SECOND]:
                body += [self._of_rows(item, rows) for item in items
                         if rows is not isa.Rows.SECOND or not isinstance(item, isa.StoreKeyValue)]
        self.regions = [region for region in known if region in self.regions]
        return [BARRIER, LoopBlock(body, source=Count.WHOLE if whole else Count.HALVES), BARRIER]

    def _of_rows(self, item: Item, rows: isa.Rows) -> Item:
        if isinstance(item, isa.LoadStream | isa.StoreKeyValue | isa.SetAddress | isa.AddAddress):
            return item
        assert isinstance(item, isa.Instruction)
        item = replace(item, rows=rows)
        if rows is isa.Rows.SECOND and isinstance(item, isa.Quantize):
            return replace(item, packed=self.random.randrange(2))
        return item

    def _sync(self) -> list[Item]:
        """A token from one queue to another for no reason."""
        giver, taker = self.random.sample(list(Queue), 2)
        return [isa.Sync(target=giver, release=1 << taker),
                isa.Sync(target=taker, wait=1 << giver)]

    def _barrier(self) -> list[Item]:
        return [BARRIER]

    def _registers(self) -> list[Item]:
        """Arithmetic on an address register that nothing reads before it is set again."""
        register = self.random.choice(self.free) if self.free else 0
        if not register:
            return []
        return [isa.SetAddress(register=register, value=self.random.randrange(1 << 32)),
                isa.AddAddress(register=register, value=self.random.randrange(1 << 32))]

    def _read_step(self) -> list[Item]:
        return [BARRIER, isa.ReadStep(register=0, offset=0), BARRIER]

    # Steps.

    def _step(self, program: Program) -> Rows:
        chooser, memory = self.random, program.memory
        count = self.most_rows if self.exact_rows else chooser.choice(
            [self.most_rows, self.most_rows, chooser.randint(1, self.most_rows)])
        repeats = chooser.randint(1, memory.repeats) if self.greedy else 1
        table = np.zeros(count, layout.STEP_ROW)
        slots = self._slots(program)
        spare = slots[self.most_rows:]
        roots: dict[int, int] = {}  # sequence -> position: what a step writes it must not read
        placed: set[int] = set()
        for at in range(count):
            row = table[at]
            parent = chooser.choice([at - 1, at - 1, chooser.randrange(at)]) if at else -1
            if self.greedy or at == 0 or chooser.random() < 0.25 or (
                    table[parent]["position"] + 1 >= memory.context):
                sequence = at if self.greedy else chooser.randrange(self.most_rows)
                row["position"] = roots.setdefault(
                    sequence, self._position(memory.context - repeats))
                row["sequence"], row["parent"] = sequence, -1
            else:
                row["parent"], row["sequence"] = parent, table[parent]["sequence"]
                row["position"] = table[parent]["position"] + 1
            row["token"] = chooser.randrange(self.assembly.vocab)
            row["flags"] = chooser.random() < 0.85
            row["place"] = layout.PLACE_BY_POSITION
            if chooser.random() < 0.2:
                self._explicit(row, spare, placed)
        header = np.zeros((), layout.STEP_HEADER)
        header["rows"], header["repeats"] = count, repeats
        header["head"] = chooser.random() < 0.7
        header["page_stride"], header["slot_words"] = memory.page_stride, memory.slot_words
        header["slots"], header["pages"] = memory.slots, memory.pages.start // WORD_BYTES
        return Rows(header, table, slots)

    def _explicit(self, row: np.ndarray, spare: np.ndarray, placed: set[int]) -> None:
        """Put a row's key and value to a place that no sequence has."""
        page = int(row["position"]) // numerics.PAGE_TOKENS
        slot = int(self.random.choice(spare[:, page % spare.shape[1]].tolist()))
        place = slot * numerics.PAGE_TOKENS + self.random.randrange(numerics.PAGE_TOKENS)
        if place not in placed:
            placed.add(place)
            row["place"] = place

    def _position(self, most: int) -> int:
        chooser = self.random
        near = [at + chooser.choice([-1, 0, 1]) for at in range(0, most, numerics.PAGE_TOKENS)]
        wanted = chooser.choice([0, 1, chooser.randint(0, most), most, chooser.choice(near)])
        return min(max(wanted, 0), most)

    def _slots(self, program: Program) -> np.ndarray:
        """Return each sequence's cache slots, ``(sequences, pages)``: distinct in each class."""
        memory = program.memory
        pages = -(-memory.context // numerics.PAGE_TOKENS)
        table = np.zeros((memory.sequences, pages), np.uint32)
        for page_class in range(min(numerics.PAGE_CLASSES, pages)):
            order = list(range(memory.slots))
            self.random.shuffle(order)
            columns = range(page_class, pages, numerics.PAGE_CLASSES)
            for sequence in range(memory.sequences):
                for column in columns:
                    table[sequence, column] = order.pop()
        return table


class _NoRoom(Exception):
    """What was wanted does not fit here."""


def case(seed: int, arch: ArchConfig, **choices: object) -> Case:
    """Return the case of a seed for a build."""
    return Generator(seed, arch, **choices).case()  # type: ignore[arg-type]
