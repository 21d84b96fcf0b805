"""The command line as a user meets it: results, JSON keys, and one clear line for each mistake."""

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

BUNDLED = Path(str(files("alula.host.bundled")))
DENSE, SPARSE = BUNDLED / "dense", BUNDLED / "sparse"


def alula(*arguments, code=0):
    """Run the command in a process of its own; return what it printed, and check its exit code."""
    done = subprocess.run([sys.executable, "-m", "alula.host.cli", *map(str, arguments)],
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def golden_run(program, *arguments):
    return as_json("run", program, "--device", "golden", *arguments)


def as_json(*arguments):
    return json.loads(alula(*arguments, "--json", "--quiet").stdout)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "dense.alula"
    facts = as_json("compile", DENSE, "-o", path, "--arch", "sim")
    assert {"program_bytes", "weight_bytes", "bits_per_weight"} <= facts.keys()
    assert facts["program_bytes"] < 8192 and facts["scale_error"] == 0
    return path


def test_demo():
    facts = as_json("demo", "--device", "golden", "--max-new-tokens", 12)
    assert {"tokens", "text", "device", "tokens_per_s"} <= facts.keys()
    assert len(facts["tokens"]) == 12 and facts["device"] == "golden"


def test_demo_prints_text_and_steps():
    done = alula("demo", "--device", "golden", "--max-new-tokens", 8, "--prompt", "Return the")
    assert done.stdout.startswith("Return the")
    assert "[1/10] read the model" in done.stderr and "tokens/s" in done.stderr
    assert done.stderr.startswith("log: ")


def test_demo_on_cpu():
    """The golden model beside it agrees with every bit, and gives the same text alone."""
    facts = as_json("demo", "--device", "cpu", "--max-new-tokens", 12)
    assert facts["device"] == "cpu" and facts["compared_bytes"] > 0
    assert facts["tokens"] == as_json("demo", "--device", "golden", "--max-new-tokens",
                                      12)["tokens"]


def test_sparse_demo_is_smaller():
    dense, sparse = (as_json("demo", "--device", "golden", "--model", name,
                             "--max-new-tokens", 1) for name in ("dense", "sparse"))
    assert sparse["weight_bytes"] < 0.9 * dense["weight_bytes"]


def test_run(program):
    greedy = golden_run(program, "--prompt", "If the", "--max-new-tokens", 10)
    assert greedy["device"] == "golden" and 1 <= len(greedy["tokens"]) <= 10
    assert greedy["tokens"] == golden_run(program, "--prompt", "If the", "--max-new-tokens", 10,
                                       "--top-k", 1, "--temperature", 1)["tokens"]
    seeds = [golden_run(program, "--prompt", "If the", "--max-new-tokens", 10,
                     "--temperature", 1, "--seed", seed)["tokens"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_run_past_the_end(program):
    """A text that ends goes on only when asked to."""
    short = golden_run(program, "--prompt", "Note that", "--max-new-tokens", 40)["tokens"]
    long = golden_run(program, "--prompt", "Note that", "--max-new-tokens", 40,
                   "--ignore-eos")["tokens"]
    assert len(short) < len(long) == 40 and long[:len(short)] == short


def test_run_until_a_stop(program):
    plain = golden_run(program, "--prompt", "If the", "--max-new-tokens", 20)
    assert plain["finish_reason"] == "length"
    found = golden_run(program, "--prompt", "If the", "--max-new-tokens", 20, "--stop", "window",
                       "--stop", "never")
    assert found["finish_reason"] == "stop"
    assert found["text"] == plain["text"][:plain["text"].index("window")]


def test_run_with_sampling(program):
    """Every way to leave only the best token gives the greedy text."""
    plain = golden_run(program, "--prompt", "If the", "--max-new-tokens", 8)["tokens"]
    for left in (("--top-p", 0.01), ("--min-p", 1), ("--top-k", 1)):
        assert golden_run(program, "--prompt", "If the", "--max-new-tokens", 8, "--temperature", 1,
                          *left)["tokens"] == plain
    assert golden_run(program, "--prompt", "If the", "--max-new-tokens", 8,
                      "--repetition-penalty", 5)["tokens"] != plain


def test_run_without_prompt(program):
    assert golden_run(program, "--max-new-tokens", 3)["prompt_tokens"] == 1


def test_eval(program):
    facts = as_json("eval", program, "--text", BUNDLED / "validation.txt", "--limit", 1500,
                    "--window", 100, "--reference", DENSE)
    assert {"loss", "perplexity", "bits_per_byte"} <= facts.keys()
    assert abs(facts["loss"] / facts["reference"]["loss"] - 1) < 0.005


def test_disasm(program):
    text = alula("disasm", program).stdout
    assert "LD.LoadStream" in text and text.rstrip().endswith("SYS.End")
    assert len(as_json_plain("disasm", program)["instructions"]) == len(text.splitlines())


def as_json_plain(*arguments):
    return json.loads(alula(*arguments, "--json").stdout)


def test_inspect():
    facts = as_json("inspect", SPARSE)
    assert {"coverage", "weights"} <= facts.keys()
    zeros = [weight["zeros"] for weight in facts["weights"]]
    assert max(zeros) >= 0.45
    assert "on the accelerator" in alula("inspect", SPARSE).stdout


def test_doctor():
    names = {check["name"] for check in as_json_plain("doctor")["checks"]}
    assert {"Python", "onnx", "pyxrt", "C++ compiler"} <= names


def test_compile_shape():
    facts = as_json("compile", "--shape", "llama2-7b", "--recipe", "w4g128", "--arch", "u55c")
    assert facts["program_bytes"] <= 65_536 and facts["parameters"] > 6.7e9


@pytest.mark.parametrize("recipe, extra", [
    ("w4g32", ()), ("w8g64", ()), ("w4g32a+8:16", ()),
    ("w4g16+drop50", ("--score", "wanda")), ("w4g32", ("--rounding", "gptq"))])
def test_compress(tmp_path, recipe, extra):
    """The result loads in ONNX Runtime and in Alula, which agree on it."""
    if extra:
        extra = (*extra, "--calibration", BUNDLED / "validation.txt", "--windows", 4,
                 "--window", 64)
    as_json("compress", DENSE, "-o", tmp_path / "out", "--recipe", recipe, *extra)
    onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    as_json("compile", tmp_path / "out", "-o", tmp_path / "p.alula")
    facts = as_json("eval", tmp_path / "p.alula", "--text", BUNDLED / "validation.txt", "--limit",
                    1000, "--window", 64, "--reference", tmp_path / "out")
    assert abs(facts["loss"] / facts["reference"]["loss"] - 1) < 0.01
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".alula")]


@pytest.mark.parametrize("arguments, code, message", [
    (("run", "none.alula"), 1, "none.alula must be a readable file"),
    (("compile",), 1, "either a model directory or --shape must be given"),
    (("compile", DENSE), 1, "-o FILE must be given with a model directory"),
    (("compile", "--shape", "gpt-5"), 1, "shape must be one of llama2-7b"),
    (("compile", "--shape", "llama2-7b", "--arch", "u250"), 1, "arch must be one of sim, pynq-z2"),
    (("compile", "--shape", "llama2-7b", "--recipe", "q4_0"), 1, "a recipe must look like w4g64"),
    (("compile", "--shape", "llama2-13b", "--arch", "zcu104"), 1, "choose a larger board"),
    (("demo", "--model", "big"), 1, "model must be dense or sparse, not 'big'"),
    (("demo", "--device", "tpu"), 1,
     "device must be one of auto, rtl, golden, cpu, cuda, alveo, pynq, not 'tpu'"),
    (("demo", "--device", "golden", "--memory", "latency=4"), 1,
     "memory models and traces are for the device rtl, not golden"),
    (("demo", "--device", "cpu", "--memory", "latency=4"), 1,
     "memory models and traces are for the device rtl, not cpu"),
    (("demo", "--trace", "/nowhere/x.fst"), 1,
     "a trace must go to a file in a folder that exists, not /nowhere/x.fst"),
    (("demo", "--memory", "speed=4"), 1, "a memory model must be ideal, hbm2,"),
    (("demo", "--memory", "stall=2"), 1, "a memory's stall must be from 0 to 0.99, not 2.0"),
    (("run", "x.alula", "--top-p", "0"), 1, "top_p must be above 0 and at most 1, not 0.0"),
    (("chat", DENSE, "--device", "alveo"), 1, "pyxrt must be importable, not absent; install XRT"),
    (("chat", "/nowhere"), 1, "/nowhere must be a program file or a model directory"),
    (("demo", "--temperature", "-1"), 1, "temperature must be at least 0, not -1.0"),
    (("demo", "--device", "golden", "--max-new-tokens", "99999"), 1,
     "prompt and new tokens must be at most"),
    (("inspect", "/nowhere"), 1, "must be a directory"),
    (("compress", DENSE, "-o", BUNDLED), 1, "must not exist yet, or be an empty directory"),
    (("compress", DENSE, "-o", "x", "--rounding", "up"), 1, "rounding must be one of rtn, gptq"),
    (("compress", DENSE, "-o", "x", "--score", "wanda"), 1, "calibration text must be given"),
    (("nonsense",), 2, "No such command"),
    (("demo", "--max-new-tokens", "no"), 2, "Invalid value"),
])
def test_mistakes_wrong(arguments, code, message):
    done = alula(*arguments, code=code)
    assert message in done.stderr and done.stderr.splitlines()[-1].startswith("alula: ")
    assert not Path("x").exists()


def test_truncated_program_wrong(program, tmp_path):
    short = tmp_path / "short.alula"
    short.write_bytes(program.read_bytes()[:5000])
    assert "cut short" in alula("run", short, code=1).stderr


def test_failed_compile_leaves_nothing(tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(DENSE, broken)
    (broken / "model.onnx.data").write_bytes(b"")
    alula("compile", broken, "-o", tmp_path / "p.alula", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_not_finite_weights_wrong(tmp_path):
    """A model of NaN scales is compiled or refused, never a crash."""
    broken = tmp_path / "model"
    shutil.copytree(DENSE, broken)
    path = broken / "model.onnx.data"
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[-4096:] = 0xFF
    path.write_bytes(data.tobytes())
    done = subprocess.run([sys.executable, "-m", "alula.host.cli", "compile", str(broken), "-o",
                           str(tmp_path / "p.alula")], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and done.returncode in (0, 1)


def test_refused_model_wrong(tmp_path):
    """A node that cannot be lowered: a report and one line, exit code 2, and no file."""
    broken = tmp_path / "model"
    shutil.copytree(DENSE, broken)
    model = onnx.load(str(broken / "model.onnx"), load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.op_type = "PagedAttention"
    (broken / "model.onnx").write_bytes(model.SerializeToString())
    done = alula("compile", broken, "-o", tmp_path / "p.alula", code=2)
    for part in ("PagedAttention", node.name, "com.microsoft", "GroupQueryAttention",
                 "use_paged_attention=false"):
        assert part in done.stderr
    assert not (tmp_path / "p.alula").exists()
    report = json.loads(alula("inspect", broken, "--json", code=2).stdout)["coverage"]
    assert any(entry["disposition"] == "refused" for entry in report)
