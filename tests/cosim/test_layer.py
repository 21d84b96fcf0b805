"""A layer of LLaMA2-7B at its true size on the whole u55c build: 32 lanes, every bit and clock.

Building the simulation takes ten minutes on two cores, running it about as long.
"""

from dataclasses import replace

import numpy as np
import pytest
from programs.pair import equal_memories

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.graph import Codes
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES, Zeros, decoder
from alula.host.device import GoldenDevice
from alula.host.perf import PASSES, Model
from alula.host.session import Row, Session
from alula.hw import isa
from alula.hw.arch import build

CONTEXT = 512
LANE_BEATS = 53_262  # of a layer's weights, keys and values, with scales and headers


class Random(Zeros):
    """Random codes and scales."""

    def matrix(self, rows, cols, source):
        plain = super().matrix(rows, cols, source)

        def read(start, stop):
            random = np.random.default_rng((rows, cols, start))
            shape, scales = (stop - start, cols), (stop - start, plain.groups)
            return Codes(random.integers(0, 1 << plain.bits, shape, np.uint8),
                         random.uniform(0.5, 1.5, scales).astype(np.float32) * 0.01,
                         np.full(scales, 1 << plain.bits - 1, np.uint8))
        return replace(plain, read=read)

    def table(self, rows, cols):
        plain = super().table(rows, cols)
        random = np.random.default_rng(cols)
        values = random.standard_normal((rows, cols)).astype(np.float16).astype(np.float32)
        return replace(plain, read=lambda a, b: values[a:b])


@pytest.mark.slow
def test_layer_of_llama():
    shape = replace(SHAPES["llama2-7b"], layers=PASSES, vocab=512)
    program = compile_graph(decoder(shape, Random(parse("w4g128")), CONTEXT + 64), build("u55c"),
                            Options(context=CONTEXT + 64, sequences=1))
    hardware = Model(program, timing=False)
    golden = GoldenDevice(program)
    random = np.random.default_rng(1)
    for ours, theirs in zip(hardware.device.caches, golden.machine.caches, strict=True):
        ours.view(np.uint32)[:] = random.uniform(0.001, 0.01, ours.size // 4).astype(
            np.float32).view(np.uint32)  # scales; as keys and values any bytes will do
        theirs[:] = ours
    row = [Row(0, 3, CONTEXT, wants_logits=True)]
    for session in (hardware.session, theirs := Session(golden)):
        session.open()
        session.lengths[0] = CONTEXT
        session.step(row)
    logits = hardware.session.logits(0)
    assert np.isfinite(logits).all() and logits.std() > 0
    np.testing.assert_array_equal(logits.view(np.uint32), theirs.logits(0).view(np.uint32))
    equal_memories(golden, hardware.device)
    for session in (hardware.session, theirs):
        session.close(0)

    model = Model(program)
    for simulation in (hardware, model):
        simulation.step(1, 1, CONTEXT, head=False)
    layer, model = hardware.last_layer, model.last_layer
    print(f"a layer: {layer.cycles} clocks, {layer.lane_beats.min()} to {layer.lane_beats.max()} "
          f"beats; cycle model {model.cycles}; {hardware.clocks / hardware.seconds:.0f} clocks/s")
    assert abs(model.cycles / layer.cycles - 1) <= 0.01
    assert layer.lane_beats.min() / layer.cycles >= 0.88
    assert any(isinstance(insn, isa.Attend) for insn in program.instructions)
    assert layer.lane_beats.min() == pytest.approx(LANE_BEATS, rel=0.01)
