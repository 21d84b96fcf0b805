"""What a user may name a model by, and what is kept of a compiled one."""

import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import alula
from alula.compiler.program import ProgramError, save
from alula.host import model
from alula.host.model import open_program

DENSE = Path(str(files("alula.host.bundled"))) / "dense"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "cache_folder", lambda: tmp_path / "programs")
    return tmp_path / "programs"


def test_directory_is_compiled_once(kept, tmp_path):
    steps = []

    def begin(name, total):
        steps.append(name)
        return lambda made: None

    first = open_program(DENSE, begin=begin)
    assert len(steps) == model.STEPS and steps[0] == "read the model"
    again = open_program(DENSE, begin=begin)
    assert len(steps) == model.STEPS and again.instructions == first.instructions
    assert len(list(kept.iterdir())) == 1
    open_program(DENSE, context=128, begin=begin)
    assert len(steps) == 2 * model.STEPS
    changed = tmp_path / "dense"
    shutil.copytree(DENSE, changed)
    open_program(changed, begin=begin)
    assert len(steps) == 2 * model.STEPS  # the same content, wherever it is
    with (changed / "model.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"\1")
    open_program(changed, begin=begin)
    assert len(steps) == 3 * model.STEPS


def test_damaged_program_is_made_anew(kept):
    open_program(DENSE)
    path = next(kept.iterdir())
    path.write_bytes(path.read_bytes()[:4000])
    assert open_program(DENSE).model.name == "dense"
    assert path.stat().st_size > 4000


def test_without_cache(kept):
    assert open_program(DENSE, cache=False).model.name == "dense"
    assert not kept.exists()


def test_program_and_file(tmp_path):
    program = alula.compile(DENSE, output=tmp_path / "dense.alula")
    assert open_program(program) is program
    assert open_program(str(tmp_path / "dense.alula")).instructions == program.instructions
    save(program, tmp_path / "again.alula")
    assert alula.load(tmp_path / "again.alula").memory == program.memory


def test_name_of_nothing_wrong():
    with pytest.raises(ProgramError, match="^/nowhere must be a program file or a model directory; "
                                           "there is nothing of this name$"):
        open_program("/nowhere")


def test_import_is_light():
    """The package loads nothing; the interface loads no framework, no driver and no ONNX."""
    code = ("import sys, time; start = time.perf_counter(); import alula; "
            "took = time.perf_counter() - start; before = set(sys.modules); "
            "assert 'numpy' not in before and took < 0.2, took; alula.LLM; alula.SamplingParams; "
            "print(*{'torch', 'onnx', 'pynq', 'pyxrt', 'transformers', 'amaranth', 'jinja2'}"
            " & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
