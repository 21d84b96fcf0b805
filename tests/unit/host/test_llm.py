"""The Python interface: results, streams, threads, devices that fail, memory that comes back."""

import asyncio
import gc
import random
import textwrap
import threading
import weakref
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from models import program as random_program
from pretend import Faulty, Pretend, solo

import alula
from alula.compiler.program import save
from alula.host import choice
from alula.host.choice import Devices, Kind, NoDevice
from alula.host.compared import Compared, Mismatch
from alula.host.device import GoldenDevice
from alula.host.engine import Engine
from alula.host.generate import generate
from alula.host.text import TextError
from alula.hw.arch import SIM
from alula.hw.numerics import PAGE_TOKENS

ROOT = Path(__file__).parents[3]
DENSE = Path(str(files("alula.host.bundled"))) / "dense"


@pytest.fixture(scope="module")
def dense():
    return alula.compile(DENSE)


@pytest.fixture
def llm(dense):
    with alula.LLM(dense, device="golden") as found:
        yield found


@pytest.fixture(scope="module")
def made():
    return random_program(SIM, layers=1, context=1024, sequences=8)


def _params(**params):
    return alula.SamplingParams(**{"max_tokens": 10, **params})


def test_generate(llm):
    several = llm.generate(["If the", "Note that"], _params(max_tokens=40))
    assert [result.prompt for result in several] == ["If the", "Note that"]
    assert several[1].outputs[0].finish_reason == "eos"
    assert several[1].text.endswith(".") and "<|" not in several[1].text
    assert several[0].outputs[0].finish_reason == "length"
    alone = llm.generate(list(several[0].prompt_token_ids), _params(max_tokens=40))
    assert alone[0].prompt is None and alone[0].text == several[0].text


def test_generate_is_what_the_device_says(llm, dense):
    """The same tokens as one row at a time, without engine or batch."""
    from alula.host.session import Session

    result = llm.generate("If the", _params(max_tokens=20))[0]
    session = Session(GoldenDevice(dense))
    logits = session.feed(session.open(), result.prompt_token_ids)
    for token in result.outputs[0].token_ids:
        assert token == int(logits[0].argmax())
        logits = session.feed(0, [token])


def test_stream_is_the_result(llm):
    params = _params(max_tokens=30, temperature=0.9, seed=5)
    chunks = list(llm.stream("Return the", params))
    result = llm.generate("Return the", params)[0].outputs[0]
    assert "".join(map(str, chunks)) == result.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == result.token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == result.finish_reason


def test_dropped_stream_is_cancelled(llm):
    request = llm.submit("If the", _params(max_tokens=200, ignore_eos=True))
    chunks = iter(request)
    first = next(chunks)
    chunks.close()
    result = request.result(20)
    assert result.outputs[0].finish_reason == "cancelled" and result.text.startswith(first.text)
    assert len(result.outputs[0].token_ids) < 200
    assert list(llm.stream("If the", _params(max_tokens=2)))


def test_stops(llm):
    plain = llm.generate("If the", _params(max_tokens=40))[0]
    word = plain.text[10:16]
    cut = llm.generate("If the", _params(max_tokens=40, stop=word))[0]
    assert cut.text == plain.text[:plain.text.index(word)]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", word)
    kept = llm.generate("If the", _params(max_tokens=40, stop=[word],
                                          include_stop_str_in_output=True))[0]
    assert kept.text == cut.text + word
    token = plain.outputs[0].token_ids[4]
    ended = llm.generate("If the", _params(max_tokens=40, stop_token_ids=[token]))[0].outputs[0]
    assert ended.token_ids[-1] == ended.stop_reason == token
    assert plain.text.startswith(ended.text)


def test_min_tokens(llm):
    short = llm.generate("Note that", _params(max_tokens=40))[0].outputs[0]
    long = llm.generate("Note that", _params(max_tokens=40, min_tokens=30))[0].outputs[0]
    assert len(short.token_ids) < 30 <= len(long.token_ids)
    assert long.token_ids[:len(short.token_ids) - 1] == short.token_ids[:-1]


def test_samples(llm):
    """n texts of a prompt; each can be made again by its own seed."""
    result = llm.generate("If the", _params(n=3, temperature=1.0))[0]
    assert [text.index for text in result.outputs] == [0, 1, 2]
    assert len({text.text for text in result.outputs}) == 3
    again = [llm.generate("If the", _params(temperature=1.0, seed=text.seed))[0].text
             for text in result.outputs]
    assert again == [text.text for text in result.outputs]
    chunks = list(llm.stream("If the", _params(n=2, temperature=1.0)))
    assert sorted(chunk.index for chunk in chunks if chunk.finish_reason) == [0, 1]


def test_logprobs(llm):
    found = llm.generate("If the", _params(logprobs=3))[0].outputs[0]
    assert [entry.token for entry in found.logprobs] == list(found.token_ids)
    for entry in found.logprobs:
        assert entry.logprob == max(entry.top.values()) <= 0 and len(entry.top) == 3
    assert llm.generate("If the", _params())[0].outputs[0].logprobs is None


def test_params_of_each_prompt(llm):
    results = llm.generate(["a", "b"], [_params(max_tokens=1), _params(max_tokens=2)])
    assert [len(result.outputs[0].token_ids) for result in results] == [1, 2]
    with pytest.raises(ValueError, match="^params must be one, or one for each of 2 prompts,"):
        llm.generate(["a", "b"], [_params()])


def test_empty_prompt(llm):
    assert llm.generate("", _params(max_tokens=1))[0].prompt_token_ids == (0,)


def test_agenerate(llm):
    async def both():
        async def one(prompt):
            return "".join([chunk.text async for chunk in llm.agenerate(prompt, _params())])
        return await asyncio.gather(one("If the"), one("Note that"))

    expected = [result.text for result in llm.generate(["If the", "Note that"], _params())]
    assert asyncio.run(both()) == expected


def test_threads(made):
    """Calls from many threads at once share the device, and none gets another's tokens."""
    wrong = []
    with alula.LLM(made, device=Pretend) as llm:
        def call(number):
            source = random.Random(number)
            for _ in range(10):
                prompt = [source.randrange(515) for _ in range(source.randrange(1, 90))]
                params = _params(temperature=source.choice([0.0, 1.0]), seed=number)
                found = llm.generate(prompt, params)[0].outputs[0]
                if list(found.token_ids) != solo(made, prompt, params, number):
                    wrong.append(number)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_failing_device_hands_over(made):
    with alula.LLM(made, device=[lambda p: Faulty(p, 300), Pretend]) as llm:
        prompts = [[number] * 40 for number in range(1, 9)]
        chunks = [[] for _ in prompts]
        requests = [llm.submit(prompt, _params(max_tokens=50, ignore_eos=True))
                    for prompt in prompts]
        for request, got in zip(requests, chunks, strict=True):
            got += request
        assert llm.statistics.handovers == 1 and llm.device == "pretend"
        assert llm.device_report[1:] == (
            "pretend: runs model", "faulty failed: OSError: the link is down; pretend goes on")
        for prompt, got in zip(prompts, chunks, strict=True):
            tokens = [token for chunk in got for token in chunk.token_ids]
            assert tokens == solo(made, prompt, _params(max_tokens=50, ignore_eos=True))


def test_failing_device_alone(made):
    with alula.LLM(made, device=lambda p: Faulty(p, 30)) as llm:
        request = llm.submit([1] * 60, _params())
        with pytest.raises(OSError, match="^the link is down$"):
            request.result(20)
        with pytest.raises(OSError, match="^the link is down$"):
            list(llm.stream([1], _params()))


def test_mismatch_is_not_handed_over(made):
    """Two devices that disagree are a defect, not a failure: nobody goes on."""
    class Wrong(Pretend):
        def read(self, start, size):
            return super().read(start, size) ^ (start >= self.program.memory.logits.start)

    with alula.LLM(made, device=[lambda p: Compared(Pretend(p), Wrong(p)), Pretend]) as llm:
        with pytest.raises(Mismatch, match="^pretend and pretend must give the same bits"):
            llm.generate([1], _params())


def test_auto(made, monkeypatch):
    """Each kind is asked in order; the report says what came of it."""
    monkeypatch.setattr(choice, "KINDS", (Kind("alveo", "alula.host.nothing"),
                                          Kind("golden", "alula.host.device")))
    with alula.LLM(made) as llm:
        assert llm.device == "golden"
        assert llm.device_report == ("alveo: this version of Alula has no alveo device",
                                     "golden: runs model")


def test_auto_takes_what_answers(made, monkeypatch):
    """A module may say why its device cannot run, and may fail to open it."""
    import types

    import alula.host

    modules = {
        "silent": types.SimpleNamespace(probe=lambda program: "no card answers"),
        "broken": types.SimpleNamespace(open_device=lambda program: 1 / 0),
        "ready": types.SimpleNamespace(probe=lambda program: "", open_device=Pretend)}
    monkeypatch.setattr(choice, "find_spec", lambda name: name)
    monkeypatch.setattr(choice, "import_module", lambda name: modules[name])
    monkeypatch.setattr(choice, "KINDS", tuple(Kind(name, name) for name in modules))
    devices = Devices(made)
    assert devices.open().name == "pretend"
    assert devices.report == ["silent: no card answers", "broken: division by zero",
                              "pretend: runs model"]
    with pytest.raises(NoDevice, match="^a device must be left to run the program; silent: no"):
        devices.open()
    assert alula.host


@pytest.mark.parametrize("device, message", [
    ("tpu", "device must be one of auto, alveo, pynq, cuda, cpu, golden, rtl, "
            "not 'tpu'"),
    ([], "device must be at least one, not none"),
])
def test_device_wrong(made, device, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        alula.LLM(made, device=device)


def test_device_of_another_program_wrong(made, dense):
    with pytest.raises(ValueError, match="^the device golden must hold the program that is to"):
        alula.LLM(made, device=GoldenDevice(dense))


def test_without_tokenizer(made):
    with alula.LLM(made, device=Pretend) as llm:
        assert llm.generate([[1, 2]], _params())[0].text == ""
        with pytest.raises(TextError, match="^the model must have a tokenizer.json"):
            llm.generate("a", _params())
        with pytest.raises(TextError, match="^stop must be empty for a program without"):
            llm.generate([1], _params(stop="a"))


def test_nothing_begins_if_a_prompt_is_wrong(made):
    with alula.LLM(made, device=Pretend) as llm:
        with pytest.raises(ValueError, match="^a token must be below 515, not 999"):
            llm.generate([[1], [999]], _params())
        assert llm.statistics.prompt_tokens == 0


def test_closed_wrong(made):
    llm = alula.LLM(made, device=Pretend)
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="^the LLM must be open; it was closed$"):
        llm.generate([1], _params())


def test_close_cancels(made):
    class Slow(Pretend):
        def step(self):
            threading.Event().wait(0.01)
            super().step()

    llm = alula.LLM(made, device=Slow)
    request = llm.submit([1], _params(max_tokens=900, ignore_eos=True))
    llm.close()
    assert request.result(1).outputs[0].finish_reason == "cancelled"


def test_timeout_wrong(made):
    class Stuck(Pretend):
        def step(self):
            threading.Event().wait(0.2)
            super().step()

    with alula.LLM(made, device=Stuck) as llm:
        request = llm.submit([1], _params(max_tokens=2))
        with pytest.raises(TimeoutError, match=r"^the request must end within 0\.01 s"):
            request.result(0.01)
        assert request.result(20)


def test_dropped_llm_is_freed(made):
    llm = alula.LLM(made, device=Pretend)
    llm.generate([1], _params())
    thread, reference = llm._thread, weakref.ref(llm)
    del llm
    gc.collect()
    thread.join(5)
    assert reference() is None and not thread.is_alive()


def test_generate_in_this_thread(made):
    engine = Engine(Devices(made, Pretend))
    chunks = list(generate(engine, [1, 2], _params()))
    assert [chunk.token_ids[0] for chunk in chunks] == solo(made, [1, 2], _params())
    dropped = generate(engine, [1, 2], _params(max_tokens=100))
    next(dropped)
    dropped.close()
    assert not engine.running and engine.session.cache.held == 0


def test_turns_share_pages(made):
    """What one request left behind the next one finds, and gives the same text."""
    with alula.LLM(made, device=Pretend) as llm:
        params = _params(max_tokens=2 * PAGE_TOKENS, ignore_eos=True)
        first = llm.generate([3] * 10, params)[0]
        turn = [*first.prompt_token_ids, *first.outputs[0].token_ids, 9, 9]
        second = llm.generate(turn, params)[0]
        assert second.num_cached_tokens == 2 * PAGE_TOKENS
        assert list(second.outputs[0].token_ids) == solo(made, turn, params)
        llm.reset_prefix_cache()
        assert llm.generate(turn, params)[0].num_cached_tokens == 0
    with alula.LLM(made, device=Pretend, prefix_cache=False) as llm:
        assert [llm.generate(turn, params)[0].num_cached_tokens for _ in range(2)] == [0, 0]


def test_names_of_the_package():
    assert set(alula.__all__) <= set(dir(alula))
    for name in alula.__all__:
        assert getattr(alula, name)
    with pytest.raises(AttributeError, match="^module 'alula' has no attribute 'Llm'$"):
        alula.Llm  # noqa: B018


def test_program_of_other_sizes_is_the_same_text(dense):
    """Seeded text does not depend on the build."""
    other = alula.compile(DENSE, arch="zcu104", context=256, sequences=2)
    texts = []
    for program in (dense, other):
        with alula.LLM(program, device="golden") as llm:
            texts.append([result.text for result in llm.generate(
                ["If the", "Note that", "Return"], _params(temperature=0.8, seed=1))])
    assert texts[0] == texts[1]


def test_replaced_program_is_verified(dense):
    with pytest.raises(ValueError, match="."):
        alula.LLM(replace(dense, instructions=dense.instructions[:-1]), device="golden")


@pytest.mark.parametrize("path", ["README.md", "docs/api.md"])
def test_example_of_the_documents(dense, path, tmp_path, monkeypatch, capsys):
    """The first example that imports the package runs as it is written."""
    text = (ROOT / path).read_text("utf-8")
    block = text[text.index("    import alula\n"):]
    lines = block.splitlines()
    end = next(at for at, line in enumerate(lines) if line and not line.startswith("    "))
    save(dense, tmp_path / "model.alula")
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent("\n".join(lines[:end])), {})
    assert capsys.readouterr().out.startswith("Once ")
