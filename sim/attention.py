"""What the instructions that use the cache mean: attention, and storing keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.hw import isa, layout, numerics
from alula.hw.isa import WORD_BYTES
from alula.sim.machine import F32, Machine, MachineError, Pages, executes


@executes(isa.LoadPages)
def load_pages(machine: Machine, i: isa.LoadPages) -> None:
    machine.streams.append(Pages(machine.address(i) // WORD_BYTES, i))


@executes(isa.StoreKeyValue)
def store_key_value(machine: Machine, i: isa.StoreKeyValue) -> None:
    layer = machine.address(i) // WORD_BYTES
    keys, key_scales = machine.quantized(i.key, i.kv_heads, i.head_dim)
    values, value_scales = machine.quantized(i.value, i.kv_heads, i.head_dim)
    for row, entry in enumerate(machine.rows):
        slot, offset = _place(machine, entry)
        page_class = int(entry["position"]) // numerics.PAGE_TOKENS % numerics.PAGE_CLASSES
        for head in range(i.kv_heads):
            page = _PageView(machine.page(layer, slot, head, page_class, i.kv_heads, i.head_dim),
                             i.head_dim)
            page.keys[offset], page.key_scales[offset] = keys[row, head], key_scales[row, head]
            page.values[offset] = values[row, head]
            page.value_scales[offset] = value_scales[row, head]
        if machine.exact:
            _store_exact(machine, i, row, layer, slot, page_class, offset)


def _place(machine: Machine, entry: Any) -> tuple[int, int]:
    """Return the cache slot and the token in its page where a row's key and value belong."""
    if entry["place"] != layout.PLACE_BY_POSITION:
        slot, offset = divmod(int(entry["place"]), numerics.PAGE_TOKENS)
        return slot, offset
    page, offset = divmod(int(entry["position"]), numerics.PAGE_TOKENS)
    return machine.page_slot(int(entry["sequence"]), page), offset


class _PageView:
    """A page's parts, as views of its bytes."""

    def __init__(self, data: NDArray[np.uint8], head_dim: int) -> None:
        tokens = numerics.PAGE_TOKENS
        scales = 4 * tokens
        self.key_scales, self.value_scales = data[:2 * scales].view("<f4").reshape(tokens, 2).T
        keys_values = data[2 * scales:].view(np.int8)
        self.keys, self.values = keys_values.reshape(2, tokens, head_dim)


@executes(isa.Attend)
def attend(machine: Machine, i: isa.Attend) -> None:
    pages = machine.streams.popleft()
    assert isinstance(pages, Pages)
    query, query_scales = machine.quantized(i.query, i.heads, i.head_dim)
    out = machine.vectors(i.target, i.heads * i.head_dim)
    span = machine.span
    for chain, members in _chains(machine):
        members = [row for row in members if row in span]
        if not members:
            continue
        history = _read_history(machine, pages, chain, i)
        kept = np.stack([_visible(int(machine.rows[row]["position"]), i.window,
                                  history.keys.shape[1]) for row in members])
        if machine.exact:
            for row, sees in zip(members, kept, strict=True):
                out[row - span.start] = _attend_exact(machine, pages, i, row, history, sees)
        else:
            out[np.array(members) - span.start] = _attend_rows(
                query[members], query_scales[members], history, kept)


def _chains(machine: Machine) -> list[tuple[list[int], list[int]]]:
    """Return ``(chain, members)``: rows whose ancestors are all in one chain attend together."""
    found: list[tuple[list[int], list[int]]] = []
    for row in reversed(range(len(machine.rows))):
        chain = row_chain(machine.rows, row)
        for longer, members in found:
            if longer[:len(chain)] == chain:
                members.append(row)
                break
        else:
            found.append((chain, [row]))
    return found


def row_chain(rows: NDArray[np.void], row: int) -> list[int]:
    """Return which of a step's rows a row follows, the first first, itself last."""
    chain = [row]
    while (parent := int(rows[chain[-1]]["parent"])) >= 0:
        if parent >= chain[-1]:
            raise MachineError(f"row {chain[-1]}'s parent must be an earlier row, not {parent}")
        chain.append(parent)
    chain.reverse()
    positions = rows["position"][chain].astype(np.int64)
    if (np.diff(positions) != 1).any():
        raise MachineError(f"row {row}'s ancestors must have consecutive positions, not "
                           f"{positions.tolist()}")
    return chain


def _visible(position: int, window: int, count: int) -> NDArray[np.bool_]:
    """Return which of ``count`` positions a row attends to, ``(pages, PAGE_TOKENS)``."""
    at = np.arange(count)
    kept = at <= position
    if window:
        kept &= at > position - window
    return kept.reshape(-1, numerics.PAGE_TOKENS)


@dataclass
class _History:
    """Keys and values of a sequence's positions, up to a whole page."""

    keys: NDArray[np.int8]  # (kv_heads, positions, head_dim)
    values: NDArray[np.int8]
    key_scales: F32  # (kv_heads, positions)
    value_scales: F32


def _read_history(machine: Machine, pages: Pages, chain: list[int],
                  i: isa.Attend) -> _History:
    """Read what a chain of rows sees: its sequence's cached tokens, then the chain's own."""
    tokens, first = numerics.PAGE_TOKENS, machine.rows[chain[0]]
    base = int(first["position"])
    shape = (i.kv_heads, -(-(base + len(chain)) // tokens) * tokens)
    history = _History(np.zeros((*shape, i.head_dim), np.int8),
                       np.zeros((*shape, i.head_dim), np.int8), np.zeros(shape, np.float32),
                       np.zeros(shape, np.float32))
    for number in range(-(-base // tokens)):
        slot = machine.page_slot(int(first["sequence"]), number)
        span = slice(number * tokens, min((number + 1) * tokens, base))
        count = span.stop - span.start
        for head in range(i.kv_heads):
            page = _PageView(machine.page(pages.start, slot, head, number % numerics.PAGE_CLASSES,
                                          i.kv_heads, i.head_dim), i.head_dim)
            history.keys[head, span] = page.keys[:count]
            history.values[head, span] = page.values[:count]
            history.key_scales[head, span] = numerics.canonical(page.key_scales[:count])
            history.value_scales[head, span] = numerics.canonical(page.value_scales[:count])
    own = slice(base, base + len(chain))
    keys, key_scales = machine.quantized(i.key, i.kv_heads, i.head_dim)
    values, value_scales = machine.quantized(i.value, i.kv_heads, i.head_dim)
    history.keys[:, own] = keys[chain].swapaxes(0, 1)
    history.values[:, own] = values[chain].swapaxes(0, 1)
    history.key_scales[:, own] = key_scales[chain].T
    history.value_scales[:, own] = value_scales[chain].T
    return history


def _store_exact(machine: Machine, i: isa.StoreKeyValue, row: int, layer: int, slot: int,
                 page_class: int, offset: int) -> None:
    shape = (2, i.kv_heads, numerics.PAGE_TOKENS, i.head_dim)
    page = machine.cache_values.setdefault((layer, slot, page_class), np.zeros(shape, np.float32))
    page[0, :, offset] = machine.values(i.key, i.kv_heads, i.head_dim)[row]
    page[1, :, offset] = machine.values(i.value, i.kv_heads, i.head_dim)[row]


def _attend_exact(machine: Machine, pages: Pages, i: isa.Attend, row: int, history: _History,
                  kept: NDArray[np.bool_]) -> F32:
    """Attend with some of query, cache and softmax weights in fp32, for tests."""
    exact, ratio = machine.exact, i.heads // i.kv_heads
    codes, scales = machine.quantized(i.query, i.heads, i.head_dim)
    query = codes[row] * scales[row][:, None]
    if "query" in exact:
        query = machine.values(i.query, i.heads, i.head_dim)[row]
    keys = history.keys * history.key_scales[..., None]
    values = history.values * history.value_scales[..., None]
    if "cache" in exact:
        keys, values = _exact_history(machine, pages, row, keys.shape)
    flat = kept.reshape(-1)
    scores = np.matmul(query.reshape(i.kv_heads, ratio, i.head_dim), keys.transpose(0, 2, 1))
    if "softmax" not in exact:
        scores = scores.reshape(i.kv_heads, ratio, *kept.shape)
        codes_of, value_scales = numerics.quantize(values)
        paged = (i.kv_heads, *kept.shape)
        return numerics.attend_pages(scores[None], codes_of.reshape(*paged, i.head_dim),
                                     value_scales.reshape(paged), kept[None])[0]
    weights = np.where(flat, np.exp2(scores - scores[..., flat].max(axis=-1, keepdims=True)), 0)
    result = np.matmul(weights / weights.sum(axis=-1, keepdims=True), values)
    return result.astype(np.float32).reshape(-1)


def _exact_history(machine: Machine, pages: Pages, row: int,
                   shape: tuple[int, ...]) -> tuple[F32, F32]:
    """Return a row's keys and values as they were before quantization."""
    both = np.zeros((2, *shape), np.float32)
    entry, tokens = machine.rows[row], numerics.PAGE_TOKENS
    for number in range(shape[1] // tokens):
        slot = machine.page_slot(int(entry["sequence"]), number)
        page = machine.cache_values.get((pages.start, slot, number % numerics.PAGE_CLASSES))
        if page is not None:
            both[:, :, number * tokens:(number + 1) * tokens] = page
    return both[0], both[1]


def _attend_rows(query: NDArray[np.int8], query_scales: F32, history: _History,
                 kept: NDArray[np.bool_]) -> F32:
    """Attend with rows of one history.

    ``query`` is ``(rows, heads, head_dim)``, ``kept`` ``(rows, pages, PAGE_TOKENS)``; the result
    ``(rows, heads * head_dim)``.
    """
    rows, _, head_dim = query.shape
    kv_heads = history.keys.shape[0]
    query = query.reshape(rows, kv_heads, -1, head_dim)  # heads that share a key
    dots = np.matmul(query.astype(np.float32),
                     history.keys.astype(np.float32).transpose(0, 2, 1))  # exact: below 2**24
    scores = numerics.mul(numerics.mul(dots, query_scales.reshape(rows, kv_heads, -1, 1)),
                          history.key_scales[:, None, :])
    pages = kept.shape[1:]
    return numerics.attend_pages(
        scores.reshape(*scores.shape[:3], *pages),
        history.values.reshape(kv_heads, *pages, head_dim),
        history.value_scales.reshape(kv_heads, *pages), kept)
