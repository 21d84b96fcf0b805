"""One program, one answer: bits do not depend on chunks, batches, rows beside, lanes or build."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_decoder

from alula.compiler.compile import Options, compile
from alula.compiler.graph import ActivationKind
from alula.host.device import GoldenDevice
from alula.host.generate import generate_greedy
from alula.host.session import Row, Session
from alula.hw.arch import BUILDS, SIM
from alula.hw.numerics import PAGE_TOKENS

OPTIONS = Options(context=640, sequences=8)
RANDOM = np.random.default_rng(1)


def _tokens(count):
    return RANDOM.integers(0, 515, count).tolist()


def _session(program):
    return Session(GoldenDevice(program))


def _alone(program, tokens):
    """Logits after each token, one token at a time."""
    session = _session(program)
    sequence = session.open()
    return np.concatenate([session.feed(sequence, [token]) for token in tokens])


@pytest.fixture(scope="module")
def program():
    return compile(random_decoder(qkv_bias=True, head_bias=True, qk_norm=True), SIM, OPTIONS)


@pytest.mark.parametrize("length", [1, 7, 64, 500])
def test_prompt_lengths(program, length):
    tokens = _tokens(length)
    session = _session(program)
    whole = session.feed(session.open(), tokens, all_logits=True)
    np.testing.assert_array_equal(whole, _alone(program, tokens))


@pytest.mark.parametrize("chunk", [1, 3, 5, 16])
def test_chunks(program, chunk):
    tokens = _tokens(2 * PAGE_TOKENS + 9)
    session = _session(program)
    got = session.feed(session.open(), tokens, chunk=chunk, all_logits=True)
    reference = _session(program)
    np.testing.assert_array_equal(got, reference.feed(reference.open(), tokens, all_logits=True))


@pytest.mark.parametrize("batch", range(1, 9))
def test_batches(program, batch):
    """Sequences of different lengths share steps, a row or more each; each is as if alone."""
    prompts = [_tokens(5 + 17 * at) for at in range(batch)]
    session = _session(program)
    sequences = [session.open() for _ in prompts]
    got = [[] for _ in prompts]
    done = [0] * batch
    while any(done[at] < len(prompts[at]) for at in range(batch)):
        rows, owners = [], []
        for at, prompt in enumerate(prompts):
            part = prompt[done[at]:done[at] + 1 + at % 2]
            for offset, token in enumerate(part):
                rows.append(Row(sequences[at], token, done[at] + offset,
                                len(rows) - 1 if offset else -1, True))
                owners.append(at)
            done[at] += len(part)
        rows, owners = rows[:16], owners[:16]
        session.step(rows)
        for row, owner in enumerate(owners):
            got[owner].append(session.logits(row))
    for prompt, logits in zip(prompts, got, strict=True):
        np.testing.assert_array_equal(np.stack(logits), _alone(program, prompt))


def test_speculative_candidates(program):
    """A tree of candidates in one step: each row sees its ancestors only, as if it were alone."""
    prompt = _tokens(PAGE_TOKENS - 1)  # the tree crosses a page
    tree = [(-1, 7), (0, 8), (0, 9), (1, 10), (2, 11), (4, 12)]  # parent, token
    session = _session(program)
    sequence, spare = session.open(), session.open()
    session.feed(sequence, prompt)
    session.reserve(sequence, len(prompt) + 4)
    session.reserve(spare, 2 * PAGE_TOKENS)
    slots = session.pages[spare]
    depth, rows = [], []
    for at, (parent, token) in enumerate(tree):
        depth.append(0 if parent < 0 else depth[parent] + 1)
        position = len(prompt) + depth[at]
        page = position // PAGE_TOKENS
        rows.append(Row(sequence, token, position, parent, True,
                        place=slots[page] * PAGE_TOKENS + at))
    session.step(rows)
    for at, (_, _) in enumerate(tree):
        path, row = [], at
        while row >= 0:
            path.append(tree[row][1])
            row = tree[row][0]
        np.testing.assert_array_equal(session.logits(at),
                                      _alone(program, prompt + path[::-1])[-1])


def test_pages_are_reused(program):
    session = _session(program)
    first = session.feed(session.open(), _tokens(200))
    for sequence in list(session.lengths):
        session.close(sequence)
    tokens = _tokens(200)
    again = session.feed(session.open(), tokens)
    fresh = _session(program)
    np.testing.assert_array_equal(again, fresh.feed(fresh.open(), tokens))
    assert not np.array_equal(first, again)


@pytest.mark.parametrize("decoder", [
    dict(),
    dict(kv_heads=6, bits=8, group=16),
    dict(kv_heads=1, bits=3, group=64, asymmetric=True),
    dict(qk_norm=True, bits=2, group=16, activation=ActivationKind.GELU),
    dict(qkv_bias=True, head_bias=True, kept=8, activation=ActivationKind.GELU_TANH),
    dict(dropped=0.5, window=50, interleaved=True, activation=ActivationKind.RELU),
    dict(hidden=80, ffn=200, head_dim=48, heads=2, kv_heads=2),
], ids=str)
def test_builds(decoder):
    """Build size changes no bit: lanes, beats, rows of a step, vector width."""
    graph = random_decoder(layers=2, **decoder)
    tokens = _tokens(90)
    found = []
    for arch in (BUILDS["sim"], BUILDS["zcu104"], BUILDS["u55c"],
                 replace(SIM, name="odd", lanes=5, beat_bytes=32, lane_dsps=64, rows=3)):
        session = _session(compile(graph, arch, OPTIONS))
        found.append(session.feed(session.open(), tokens, all_logits=True))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_device_chooses_greedy_tokens(program):
    """Many steps without the host give the host's tokens."""
    prompt = _tokens(30)
    one, two = _session(program), _session(program)
    logits = two.feed(two.open(), prompt)
    expected = []
    for _ in range(90):
        expected.append(int(np.argmax(logits[0])))
        logits = two.feed(0, expected[-1:])
    assert generate_greedy(one, prompt, 90) == expected


def test_window_forgets(program):
    graph = random_decoder(layers=1, window=20)
    program = compile(graph, SIM, OPTIONS)
    tail = _tokens(40)
    a, b = (_alone(program, _tokens(100) + tail)[-1] for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_query_that_is_also_the_key():
    """The softmax scale is in the query's quantized copy alone."""
    graph = random_decoder(layers=1, heads=2, kv_heads=2)
    kept = [node for node in graph.nodes if not node.name.endswith("rope")]

    def logits(key):
        def changed(node):
            if node.name == "0.attention.mix":
                return replace(node, inputs=("0.attention.q", key, "0.attention.v"))
            return replace(node, op=kept[2].op) if node.name == "0.attention.k" else node

        nodes = [changed(node) for node in kept]
        session = _session(compile(graph.with_nodes(nodes), SIM, OPTIONS))
        return session.feed(session.open(), [1, 2, 3], all_logits=True)

    np.testing.assert_array_equal(logits("0.attention.q"), logits("0.attention.k"))
