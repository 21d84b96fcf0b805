"""``alula perf``: layers that repeat, what it prints and writes, and its mistakes."""

import json

import pytest

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.program import save
from alula.compiler.recipe import parse
from alula.compiler.shapes import Sample, Shape, decoder
from alula.host.cli import app
from alula.host.perf import Model, measure, step_bytes
from alula.host.session import Row
from alula.hw import isa
from alula.hw.arch import SIM
from alula.sim.cycles import layer_loops, with_passes

SMALL = Shape(layers=5, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512,
              positions=512)


@pytest.fixture(scope="module")
def program():
    return compile_graph(decoder(SMALL, Sample(parse("w4g32")), 512), SIM,
                         Options(context=512, sequences=SIM.rows), name="small")


@pytest.fixture(scope="module")
def model(program):
    return Model(program)


def command(*arguments):
    return app(arguments, standalone_mode=False)


def test_layers_repeat(model, program):
    """Counting a layer's clocks again is what running it again costs, to the clock."""
    counted = model.step(2, 1, 100)
    sequences = [model.session.open() for _ in range(2)]
    for sequence in sequences:
        model.session.lengths[sequence] = 100
    whole = model._run([Row(sequence, 0, 100, wants_logits=True) for sequence in sequences],
                       program.instructions)
    for sequence in sequences:
        model.session.close(sequence)
    assert counted.cycles == whole.cycles
    assert counted.reasons == pytest.approx(whole.reasons)
    assert counted.busy == whole.busy


def test_bytes_are_those_read(model, program):
    """Of a step without a cache the lanes read the packer's bytes."""
    speed = measure(model, 0, weights=step_bytes(program))
    directory = 16 * len([i for i in program.instructions if isinstance(i, isa.LoadStream)])
    assert 0 <= speed.cache_bytes <= 0.05 * speed.bus_bytes + directory * SMALL.layers
    assert 0 < speed.facts()["bandwidth_share"] <= speed.facts()["bus_share"] <= 1


def test_prefill_grows_with_the_prompt(model):
    speeds = [measure(model, 16, prompt=prompt) for prompt in (16, 64, 256)]
    cycles = [speed.prefill.cycles for speed in speeds]
    assert cycles[0] < cycles[1] < cycles[2]
    assert all(speed.facts()["prefill_tokens_per_s"] > speed.decode_tokens_per_s
               for speed in speeds)


def test_loop_of_layers(program):
    loops = whole, halves = layer_loops(program.instructions)
    assert program.instructions[whole].count == SMALL.layers
    assert program.instructions[halves].count == SMALL.layers - 1
    fewer = with_passes(program.instructions, loops, 2)
    assert [fewer[loop].count for loop in loops] == [2, 1]


def test_command(program, tmp_path, capsys):
    save(program, tmp_path / "small.alula")
    pytest.importorskip("matplotlib")
    command("perf", str(tmp_path / "small.alula"), "--context", "64", "--prompt", "32",
            "--memory", "hbm2", "--json", "--quiet", "--report", str(tmp_path / "r.html"),
            "--trace", str(tmp_path / "t.json"))
    facts = json.loads(capsys.readouterr().out)
    for key in ("decode_tokens_per_s", "prefill_tokens_per_s", "bandwidth_share", "bus_share",
                "bytes_per_token", "stalls", "time_to_first_token_s", "bytes", "cycles_by_unit"):
        assert key in facts
    assert facts["decode_tokens_per_s"] == pytest.approx(
        facts["clock_hz"] / facts["decode_cycles"])
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {event["name"] for event in events} >= {"Linear", "Attend", "Quantize"}
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 4 and "http" not in page.split("<svg")[0]


@pytest.mark.parametrize("arguments, message", [
    (("perf",), "either a program file or --shape must be given"),
    (("perf", "--shape", "gpt-9"), "shape must be one of llama2-7b, "),
    (("perf", "--shape", "llama2-7b", "--board", "u99"), "arch must be one of sim, "),
    (("perf", "--shape", "llama2-7b", "--recipe", "w5g9"), "a recipe's bits must be one of "),
    (("perf", "--shape", "llama2-7b", "--report", "/nowhere/r.html"),
     "a file must be in a folder that exists, not /nowhere/r.html"),
])
def test_mistakes_wrong(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        command(*arguments)


def test_limits_wrong(model):
    with pytest.raises(ValueError, match=r"^the batch must be from 1 to 16 sequences, not 17$"):
        measure(model, 10, batch=17)
    with pytest.raises(ValueError, match=r"^context and prompt must be at most 511 tokens"):
        measure(model, 512)
