"""The golden machine against plain floating point, and its refusals."""

from dataclasses import replace

import numpy as np
import pytest
from models import program, random_decoder

from alula.compiler.compile import Options, compile
from alula.compiler.evaluate import evaluate, rows_of
from alula.compiler.graph import ActivationKind, Embed
from alula.host.device import GoldenDevice, open_device
from alula.host.session import Row, Session, SessionError
from alula.hw.arch import SIM
from alula.hw.isa import Advance, Format, LoadRow, SelectTop
from alula.hw.layout import NO_TOKEN, STEP_ROW
from alula.sim.golden import EXACT_CHOICES, EXECUTE, Machine, MachineError


@pytest.mark.parametrize("decoder", [
    dict(), dict(qk_norm=True, qkv_bias=True, head_bias=True), dict(interleaved=True, window=9),
    dict(activation=ActivationKind.GELU), dict(activation=ActivationKind.GELU_TANH),
    dict(kv_heads=6, kept=4, bits=8), dict(asymmetric=True, bits=3, dropped=0.3),
], ids=str)
def test_near_float(decoder):
    """Logits are those of the same weights in float64, but for eight-bit activations."""
    graph = random_decoder(layers=2, **decoder)
    tokens = np.random.default_rng(0).integers(0, 515, (1, 80))
    wanted = evaluate(graph, tokens)[0]
    session = Session(GoldenDevice(compile(graph, SIM, Options(context=128)), EXACT_CHOICES))
    got = session.feed(session.open(), tokens[0].tolist(), all_logits=True)
    spread = wanted.max() - wanted.min()
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.01 * spread
    assert (got.argmax(-1) == wanted.argmax(-1)).mean() > 0.8


@pytest.mark.parametrize("embedding, kind", [
    ("f32", Format.F32), ("f16", Format.F16), ("q4", Format.Q4), ("q8", Format.Q8),
    ("q3", Format.F32)])
def test_embedding_rows(embedding, kind):
    """Rows come out as they are in the model, from the smallest format that keeps them."""
    graph = random_decoder(layers=1, embedding=embedding)
    made = compile(graph, SIM, Options(context=64))
    load = [insn for insn in made.instructions if isinstance(insn, LoadRow)][-1]
    assert load.format is kind
    machine = Machine(made)
    machine.rows = np.zeros(3, STEP_ROW)
    machine.rows["token"] = tokens = [0, 7, 514]
    EXECUTE[LoadRow](machine, load)
    table = next(graph.of(Embed)).op.table
    wanted = np.concatenate([rows_of(table, token, token + 1) for token in tokens])
    np.testing.assert_array_equal(machine.vectors(load.target, load.size), wanted)


@pytest.fixture(scope="module")
def made():
    return program(SIM, layers=1, context=128, sequences=2)


def test_exact_wrong(made):
    with pytest.raises(ValueError, match=r"^exact must be among \['cache', 'query', 'softmax'\]"):
        Machine(made, frozenset({"everything"}))


def test_device_wrong(made):
    with pytest.raises(ValueError,
                       match=r"^device must be one of rtl, golden, cpu, cuda, alveo, pynq, "
                             r"not 'tpu'$"):
        open_device("tpu", made)


@pytest.mark.parametrize("rows, message", [
    ([], "a step must have from 1 to 16 rows, not 0"),
    ([Row(0, 1, at) for at in range(17)], "a step must have from 1 to 16 rows, not 17"),
    ([Row(0, 515, 0)], "a token must be below 515, not 515"),
    ([Row(0, 1, 128)], "a sequence must have at most 128 tokens, not 129"),
])
def test_step_wrong(made, rows, message):
    session = Session(GoldenDevice(made))
    session.open()
    with pytest.raises(SessionError, match=f"^{message}"):
        session.step(rows)


def test_row_past_the_cache_wrong(made):
    session = Session(GoldenDevice(made))
    sequence = session.open()
    session.feed(sequence, [1, 2, 3])
    with pytest.raises(SessionError, match="^a row without a parent must follow the 3 cached"):
        session.step([Row(sequence, 1, 3), Row(sequence, 1, 4)])


def test_row_that_reads_what_another_writes_wrong(made):
    session = Session(GoldenDevice(made))
    sequence = session.open()
    session.feed(sequence, [1, 2, 3])
    with pytest.raises(SessionError, match="^a sequence's rows without a parent must have one "
                                           "position in a step, not 3 and 1$"):
        session.step([Row(sequence, 1, 3), Row(sequence, 1, 1)])


def test_repeats_wrong(made):
    session = Session(GoldenDevice(made))
    session.step([Row(session.open(), 1, 0)])
    start = made.memory.step.start
    session.device.write(start + 4, bytes(4))
    with pytest.raises(MachineError, match="^a run must have from 1 to 64 repeats, not 0$"):
        session.device.step()


def test_logits_that_are_no_numbers(made):
    """Without a best token the next repeat takes token 0, and reads inside its table."""
    machine = Machine(made)
    machine.rows = np.zeros(2, STEP_ROW)
    machine.vector[:] = np.nan
    select = [insn for insn in made.instructions if isinstance(insn, SelectTop)]
    for insn in (select[0], replace(select[1], register=0)):
        EXECUTE[SelectTop](machine, insn)
    assert (machine.top_tokens[:2] == NO_TOKEN).all()
    EXECUTE[Advance](machine, Advance())
    assert (machine.rows["token"] == 0).all()


def test_sequences_wrong(made):
    session = Session(GoldenDevice(made))
    session.open(), session.open()
    with pytest.raises(SessionError, match="^at most 2 sequences must be open at a time"):
        session.open()


def test_rows_wrong(made):
    session = Session(GoldenDevice(made))
    session.open()
    with pytest.raises(MachineError, match="^row 1's ancestors must have consecutive positions"):
        session.step([Row(0, 1, 0), Row(0, 1, 5, 0)])
    with pytest.raises(MachineError, match="^row 0's parent must be an earlier row, not 0$"):
        session.step([Row(0, 1, 0, 0)])


def test_bad_slot_wrong(made):
    session = Session(GoldenDevice(made))
    session.open()
    with pytest.raises(MachineError, match="^cache slot must be below"):
        session.step([Row(0, 1, 0, place=1 << 28)])
