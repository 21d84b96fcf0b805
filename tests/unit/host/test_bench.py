"""What a benchmark runs, counts and prints."""

import importlib.util
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from models import program

from alula.compiler.program import save
from alula.host.bench import (
    COLUMNS,
    DeviceRunner,
    Result,
    Test,
    bytes_read,
    facts,
    markdown,
    measure,
    parse_tests,
    rows_of,
)
from alula.host.cpu.threads import use_threads
from alula.host.device import GoldenDevice
from alula.host.peers import Absent, OnnxRuntime, open_peer, peers
from alula.hw.arch import SIM

BUNDLED = Path(str(files("alula.host.bundled")))


@pytest.fixture(scope="module")
def made():
    return program(SIM, layers=1, context=128, sequences=2, head_dim=32)


def test_parse_tests():
    assert list(map(str, parse_tests("64,0", "16, 8", 128))) == ["pp64", "tg16", "tg8"]


@pytest.mark.parametrize("prompts, generated, message", [
    ("512", "0", r"^-p must be at most the program's context of 128 tokens, not 512; compile with "
                 r"a larger --context$"),
    ("x", "1", r"^-p must be numbers of tokens with commas between them, not 'x'$"),
    ("1", "-3", r"^-n must be numbers of tokens with commas between them, not '-3'$"),
    ("0", "0", r"^-p or -n must ask for some tokens, not none$"),
])
def test_parse_tests_wrong(prompts, generated, message):
    with pytest.raises(ValueError, match=message):
        parse_tests(prompts, generated, 128)


def test_bytes_read(made):
    """A step reads all weights, and the cache before it: 16 rows of a prompt, or one token."""
    of_position = 2 * made.model.layers * made.model.kv_heads * (made.model.head_dim + 4)
    assert bytes_read(made, 1000, Test("pp", 40)) == 3 * 1000 + (16 + 32) * of_position
    assert bytes_read(made, 1000, Test("tg", 4)) == 4 * 1000 + (1 + 2 + 3) * of_position


def test_measure(made):
    """Systems take turns; the first turn does not count."""
    order = []

    class Other:
        name = "other"

        def empty(self):
            order.append("empty")

        def prompt(self, tokens):
            order.append(len(tokens))

        def token(self, token):
            order.append("token")

    runners = [DeviceRunner(GoldenDevice(made)), Other()]
    taken = measure(runners, [Test("pp", 3), Test("tg", 2)], 2, made.model.vocab,
                    lambda stage, amount: lambda done: None)
    assert [(name, str(test), len(seconds)) for name, test, seconds in taken] == [
        ("alula golden", "pp3", 2), ("other", "pp3", 2), ("alula golden", "tg2", 2),
        ("other", "tg2", 2)]
    assert order == ["empty", 3] * 3 + ["empty", "token", "token"] * 3


def test_result():
    result = Result("alula cpu", Test("pp", 100), (1.0, 2.0, 4.0), 3e9)
    assert result.rate == pytest.approx((100 + 50 + 25) / 3)
    assert result.deviation == pytest.approx(np.std([100, 50, 25], ddof=1))
    assert (result.median, result.gb_per_s) == (50, 1.5)
    assert facts(result, 3.0)["share_of_roof"] == 0.5
    assert facts(Result("other", Test("tg", 1), (1.0,)), 3.0)["gb_per_s"] is None


def test_markdown(made):
    rows = rows_of([Result("alula cpu", Test("tg", 10), (1.0, 1.0), 1e9)], 2, 4.0)
    lines = markdown(made, COLUMNS, rows).splitlines()
    assert lines[0].startswith("| model | size | params | system | threads | test | t/s |")
    assert lines[2].startswith(f"| model | {made.statistics['bytes']['total'] / 2**20:.1f} MiB | ")
    assert lines[2].endswith("| alula cpu | 2 | tg10 | 10.00 ± 0.00 |  | 1.00 | 25 % |")


def test_onnx_runtime_continues():
    """Its cache grows by what is read, at once or token by token."""
    runner = OnnxRuntime(BUNDLED / "dense", 32, 1)
    runner.prompt([3, 4, 5])
    runner.token(6)
    assert runner.length == 4
    assert {value.shape()[2] for value in runner.cache.values()} == {4}
    runner.empty()
    assert runner.length == 0


def test_peers_are_absent_with_a_reason(made):
    found = dict(peers(made, 1, None, None))
    with pytest.raises(Absent, match=r"^the model's directory must be given with --model$"):
        open_peer(found["onnxruntime"])
    for name, package in (("torchao int4", "torchao"), ("llama.cpp", "llama_cpp")):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(Absent, match=f"^{package}.* is not installed$"):
                open_peer(found[name])


def test_torch_runs_the_products(made):
    pytest.importorskip("torch")
    runner = open_peer(dict(peers(made, 1, None, None))["torch bf16"])
    assert len(runner.layers) == 4 + 1  # q, k and v are one product, gate and up are one
    runner.prompt([1, 2, 3])
    runner.token(4)


def test_threads_wrong():
    with pytest.raises(ValueError, match=r"^threads must be from 1 to \d+, the cores there are, "
                                         r"not 100000$"):
        use_threads(100_000)


def test_command(made, tmp_path):
    path = tmp_path / "made.alula"
    save(made, path)
    done = subprocess.run(
        [sys.executable, "-m", "alula.host.cli", "bench", str(path), "-p", "8", "-n", "4", "-r",
         "2", "-t", "1", "--json", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [result["test"] for result in found["results"]] == ["pp8", "tg4"]
    assert found["threads"] == 1 and found["memory_gb_per_s"] > 0
    assert all(result["gb_per_s"] > 0 for result in found["results"])


def test_command_wrong(made, tmp_path):
    path = tmp_path / "made.alula"
    save(made, path)
    done = subprocess.run([sys.executable, "-m", "alula.host.cli", "bench", str(path)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "alula: -p must be at most the program's context of 128 tokens, not 512; compile with a "
        "larger --context")
