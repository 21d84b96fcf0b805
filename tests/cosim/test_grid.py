"""The bundled models on builds of 1, 2 and 4 lanes and beats of 64, 32 and 16 bytes.

Logits and every byte of memory are those of the golden model: for one token a step, four and eight,
two sequences in one step, prompts over a page's end, and greedy steps without the host, behind
memories that stall.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from programs.archs import ARCHS
from programs.pair import equal_memories

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.importer import import_model
from alula.host.device import GoldenDevice
from alula.host.rtl import RtlDevice
from alula.host.session import Row, Session
from alula.sim.memory import MemoryModel

MEMORIES = {"sim": MemoryModel(stall=0.3, seed=1), "one": MemoryModel(latency=80, bandwidth=0.7),
            "four": MemoryModel(latency=5, stall=0.2, seed=3)}


@pytest.fixture(scope="module", params=["sim", *(pytest.param(name, marks=pytest.mark.slow)
                                                 for name in ARCHS if name != "sim")])
def build(request):
    return request.param


@pytest.fixture(scope="module", params=["dense", "sparse"])
def program(request, build):
    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / request.param)
    return compile_graph(graph, ARCHS[build], Options(context=256, sequences=4),
                         name=request.param)


class Both:
    """Sessions on the golden model and on the hardware."""

    def __init__(self, program, memory):
        self.sessions = [Session(GoldenDevice(program)), Session(RtlDevice(program, memory))]

    def call(self, method, *arguments, **keywords):
        return [getattr(session, method)(*arguments, **keywords) for session in self.sessions]

    def equal(self, method, *arguments, **keywords):
        """Call a method of both; results and memories must be equal. Return the result."""
        golden, rtl = self.call(method, *arguments, **keywords)
        if golden is not None:
            np.testing.assert_array_equal(np.asarray(rtl).view(np.uint32),
                                          np.asarray(golden).view(np.uint32))
        equal_memories(self.sessions[0].device, self.sessions[1].device)
        return golden


@pytest.fixture
def both(program, build):
    both = Both(program, MEMORIES[build])
    both.call("open"), both.call("open")
    return both


TOKENS = [int(token) for token in np.random.default_rng(3).integers(4, 500, 80)]


def test_rows_of_a_step(both):
    """A token, four and eight to a step; the last over a page's end."""
    for first, last, chunk in ((0, 1, 1), (1, 5, 4), (5, 69, 8), (69, 70, 1)):
        both.equal("feed", 0, TOKENS[first:last], chunk=chunk, all_logits=True)


def test_two_sequences(both):
    """Rows of two sequences in one step, one of them over a page's end."""
    both.equal("feed", 0, TOKENS[:62], chunk=8)
    both.equal("feed", 1, TOKENS[10:13], chunk=3)
    for turn in range(3):
        both.equal("step", [Row(0, TOKENS[turn], 62 + turn, wants_logits=True),
                            Row(1, TOKENS[-turn], 3 + turn, wants_logits=True)])
    both.equal("step", [Row(1, 5, 6), Row(0, 7, 65), Row(1, 9, 7, 0, True), Row(0, 8, 66, 1, True)])


def test_greedy(both):
    """Several tokens in one run: each step's best is the next one's input."""
    both.equal("feed", 0, TOKENS[:61], chunk=8)
    both.equal("feed", 1, TOKENS[7:9])
    both.equal("step", [Row(0, 9, 61, wants_logits=True), Row(1, 11, 2, wants_logits=True)],
               repeats=5)
    tokens = [int(both.equal("best", 0, repeat)[0]) for repeat in range(5)]
    alone = Session(GoldenDevice(both.sessions[0].device.program))
    alone.open()
    alone.feed(0, TOKENS[:61], chunk=8)
    token, found = 9, []
    for position in range(61, 66):
        alone.step([Row(0, token, position, wants_logits=True)])
        token = int(alone.best(0)[0])
        found.append(token)
    assert tokens == found
