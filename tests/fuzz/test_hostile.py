"""Damaged programs, configurations and models end in a clear error or a correct result.

With ``tests/unit/compiler/importer/test_fuzz.py``, which damages ONNX files of other exporters,
more than 2,000 examples: no traceback, no hang, at most 2 GB.
"""

import json
import resource
import shutil
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from models import program

from alula.compiler.compile import Options, compile
from alula.compiler.importer import import_model
from alula.compiler.program import load, save
from alula.compiler.verify import verify
from alula.host.device import GoldenDevice
from alula.host.session import Row, Session
from alula.host.text import Text, read_files
from alula.hw import isa
from alula.hw.arch import SIM
from alula.sim.golden import MachineError

BUNDLED = Path(str(files("alula.host.bundled")))
ALLOWED = (ValueError, OSError, MachineError)  # what the command line turns into one line
SECONDS = 30
NUMBERS = st.one_of(st.integers(-3, 70), st.sampled_from(
    [2**15, 2**31 - 1, 2**32, -2**31, 2**40, 2**62, 2**63, 10**30]), st.floats(), st.none(),
    st.booleans(), st.text(max_size=3), st.just([]), st.just({}))


def _settings(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True,
                    suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2 << 30


def survives(action):
    """Run; allow success or an error that says something; bound the time."""
    begun = time.monotonic()
    try:
        action()
    except ALLOWED as error:
        assert str(error)
    assert time.monotonic() - begun < SECONDS


def _use(path):
    """Do what ``alula run`` does with a file."""
    loaded = verify(load(path))
    session = Session(GoldenDevice(loaded))
    session.step([Row(session.open(), 1, 0, wants_logits=True)])
    assert session.logits(0).size == loaded.model.vocab


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "p.alula"
    save(program(SIM, layers=1, hidden=32, heads=2, ffn=32, vocab=33, context=64, sequences=1),
         path)
    return path


@_settings(300)
@given(data=st.data())
def test_program_bytes(victim, data):
    whole = victim.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 4000), st.integers(0, len(damaged) - 1)))
        damaged[at:at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = victim.with_name("damaged.alula")
    path.write_bytes(damaged[:data.draw(st.sampled_from([None, None, 10, 2000]))])
    survives(lambda: _use(path))


def _damage_tree(tree, draw):
    """Change one leaf or key of nested dictionaries."""
    keys = sorted(tree)
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(tree[key], dict) and tree[key] and draw(st.integers(0, 3)):
        _damage_tree(tree[key], draw)
    elif draw(st.integers(0, 5)):
        tree[key] = draw(NUMBERS)
    else:
        del tree[key]


@_settings(400)
@given(data=st.data())
def test_program_manifest(victim, data):
    """An attacker who fixes the hashes still cannot crash, hang or exhaust the host."""
    whole = victim.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + length])
    manifest = json.loads(header["__metadata__"]["alula"])
    for _ in range(data.draw(st.integers(1, 2))):
        memory = manifest.get("memory")
        inner = isinstance(memory, dict) and data.draw(st.booleans())
        _damage_tree(memory if inner else manifest, data.draw)
    header["__metadata__"]["alula"] = json.dumps(manifest)
    if not data.draw(st.integers(0, 4)):
        _damage_tree(header, data.draw)
    text = json.dumps(header).encode()
    path = victim.with_name("damaged.alula")
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length:])
    survives(lambda: _use(path))


@_settings(300)
@given(data=st.data())
def test_program_instructions(victim, data):
    """Any operand of any instruction may be anything: the verifier or the machine refuses."""
    loaded = load(victim)
    code = bytearray(isa.assemble(loaded.instructions))
    for _ in range(data.draw(st.integers(1, 2))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))

    def use():
        loaded.instructions = isa.disassemble(bytes(code))
        loaded.control = np.concatenate([np.frombuffer(bytes(code), np.uint8),
                                         loaded.control[len(code):]])
        session = Session(GoldenDevice(verify(loaded)))
        session.step([Row(session.open(), 1, 0, wants_logits=True)])
    survives(use)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(BUNDLED / "sparse", directory)
    return directory


def _compile(directory):
    graph, _ = import_model(directory)
    tokenizer = read_files(directory)
    Text(tokenizer)
    compile(graph, SIM, Options(context=64, sequences=1), tokenizer=tokenizer)


@_settings(250)
@given(data=st.data())
def test_config(model, data):
    name = data.draw(st.sampled_from(["genai_config.json", "tokenizer.json"]))
    path = model / name
    whole = path.read_bytes()
    try:
        if data.draw(st.booleans()):
            tree = json.loads(whole)
            _damage_tree(tree, data.draw)
            path.write_text(json.dumps(tree))
        else:
            at = data.draw(st.integers(0, len(whole) - 1))
            path.write_bytes(whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + 2:])
        survives(lambda: _compile(model))
    finally:
        path.write_bytes(whole)


@_settings(250)
@given(data=st.data())
def test_model_bytes(model, data):
    path = model / data.draw(st.sampled_from(["model.onnx", "model.onnx.data"]))
    whole = path.read_bytes()
    try:
        if path.suffix == ".data":
            damaged = np.frombuffer(whole, np.uint8).copy()
            at = data.draw(st.integers(0, damaged.size - 1))
            damaged[at:at + data.draw(st.sampled_from([1, 100, 100_000]))] = data.draw(
                st.integers(0, 255))
            path.write_bytes(damaged[:data.draw(st.sampled_from([None, None, at]))].tobytes())
        else:
            at = data.draw(st.integers(0, len(whole) - 1))
            path.write_bytes(whole[:at] + data.draw(st.binary(max_size=4))
                             + whole[at + data.draw(st.integers(0, 4)):])
        survives(lambda: _compile(model))
    finally:
        path.write_bytes(whole)
