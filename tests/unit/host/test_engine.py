"""Whoever shares a step, whatever is full, whichever device fails: each text is as if alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from models import program
from pretend import Faulty, Pretend, resized, solo

from alula.host.choice import Devices
from alula.host.device import GoldenDevice
from alula.host.engine import Engine, Job
from alula.host.sampling import SamplingParams
from alula.host.session import Session, SessionError
from alula.hw.arch import SIM
from alula.hw.numerics import PAGE_TOKENS


@pytest.fixture(scope="module")
def made():
    found = program(SIM, layers=1, context=1024, sequences=8)
    return replace(found, model=replace(found.model, eos_tokens=(7,)))


def _engine(program, *devices, **options):
    return Engine(Devices(program, list(devices) or Pretend), **options)


def _job(engine, prompt, params, seed=0):
    job = Job(tuple(prompt), params, seed, engine.check(prompt, params))
    engine.add(job)
    return job


def _run(engine, limit=5000):
    for _ in range(limit):
        if not engine.step():
            return
    raise AssertionError("the engine must come to an end")


def _is_empty(engine):
    cache = engine.session.cache
    return (not engine.session.lengths and cache.held == 0
            and sum(map(cache.room, range(8))) == 8 * cache.slots)


def _tokens(source, count):
    return [source.randrange(515) for _ in range(count)]


def test_batches_are_solo(made):
    source, engine = random.Random(1), _engine(made)
    jobs = [_job(engine, _tokens(source, source.randrange(1, 200)),
                 SamplingParams(max_tokens=source.randrange(1, 40),
                                temperature=source.choice([0, 0.7])), seed)
            for seed in range(30)]
    _run(engine)
    for job in jobs:
        assert job.made == solo(made, job.prompt, job.params, job.seed)
        assert job.finish_reason == ("eos" if job.made[-1] == 7 else "length")
    assert _is_empty(engine)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_schedule_is_solo(made, seed):
    """Sizes, prompts with common beginnings, arrivals, cancellations, failures: all at random."""
    source = random.Random(seed)
    small = resized(made, rows=source.choice([1, 2, 3, 8, 16]), slots=source.choice([2, 3, 8]),
                    sequences=source.randrange(1, 9))
    failing = [lambda p, calls=source.randrange(1, 400), seed=number: Faulty(p, calls, seed)
               for number in range(source.randrange(3))]
    engine = _engine(small, *failing, Pretend, repeats=source.choice([1, 8]),
                     prefix_cache=source.random() < 0.8, every_logit=source.random() < 0.3)
    stems = [_tokens(source, source.randrange(1, 520)) for _ in range(2)]
    jobs = []
    for number in range(source.randrange(1, 9)):
        prompt = source.choice(stems)[:source.randrange(1, 1000)] + _tokens(
            source, source.randrange(1, 40))
        params = SamplingParams(
            max_tokens=source.randrange(1, 60), temperature=source.choice([0, 0, 1.5]),
            repetition_penalty=source.choice([1, 1.3]), ignore_eos=source.random() < 0.5)
        jobs.append(_job(engine, prompt, params, number))
        for _ in range(source.randrange(6)):
            engine.step()
        if source.random() < 0.2:
            engine.cancel(source.choice(jobs))
    _run(engine)
    for job in jobs:
        expected = solo(made, job.prompt, job.params, job.seed)
        if job.finish_reason == "cancelled":
            assert job.made == expected[:len(job.made)]
        else:
            assert job.made == expected
    assert _is_empty(engine)


@settings(max_examples=40, deadline=None)
@given(calls=st.integers(1, 150), seed=st.integers(0, 3))
def test_failures_lose_no_token(made, calls, seed):
    """A device that fails at any call, its work done or not: each token is told of once."""
    engine = _engine(made, lambda p: Faulty(p, calls, seed), Pretend)
    told = []
    jobs = []
    for number in range(4):
        prompt, params = [number + 1] * (30 * number + 1), SamplingParams(max_tokens=12)
        jobs.append(Job(tuple(prompt), params, 0, 12, tell=told.append, index=number))
        engine.add(jobs[-1])
    _run(engine)
    for number, job in enumerate(jobs):
        assert job.made == solo(made, job.prompt, job.params)
        assert [token for chunk in told if chunk.index == number
                for token in chunk.token_ids] == job.made
    if engine.statistics.handovers:
        assert engine.device == "pretend"
        assert "faulty failed: OSError: the link is down; pretend goes on" in engine.devices.report


def test_last_device_fails(made):
    """With nobody to take over, the error is everyone's, and a later request gets one too."""
    engine = _engine(made, lambda p: Faulty(p, 20))
    told = []
    jobs = [Job((1, 2), SamplingParams(), 0, 64, tell=told.append) for _ in range(3)]
    for job in jobs:
        engine.add(job)
    with pytest.raises(OSError, match="^the link is down$"):
        _run(engine)
    assert [what for what in told if isinstance(what, Exception)] == [told[-1]] * 3
    _job(engine, [1], SamplingParams())
    with pytest.raises(OSError, match="^the link is down$"):
        _run(engine)


def test_full_cache_preempts_the_youngest(made):
    engine = _engine(resized(made, slots=3))
    jobs = [_job(engine, [number] * 500, SamplingParams(max_tokens=40, ignore_eos=True))
            for number in range(5)]
    ended = []
    for _ in range(5000):
        busy = engine.step()
        ended += [job for job in jobs if job.finish_reason and job not in ended]
        if not busy:
            break
    assert engine.statistics.preemptions > 0 and ended[0] is jobs[0]
    for job in jobs:
        assert job.made == solo(made, job.prompt, job.params)


def test_rows_are_shared_fairly(made):
    """With fewer rows than sequences all advance alike, and a prompt is never left waiting."""
    engine = _engine(resized(made, rows=2))
    jobs = [_job(engine, [number], SamplingParams(max_tokens=400, ignore_eos=True))
            for number in range(6)]
    for _ in range(60):
        engine.step()
    counts = [len(job.made) for job in jobs]
    assert max(counts) - min(counts) <= 2
    late = _job(engine, [9] * 40, SamplingParams(max_tokens=3, ignore_eos=True))
    for _ in range(60):
        engine.step()
    assert late.made


def test_common_beginnings_are_shared(made):
    stem = list(range(1, 4 * PAGE_TOKENS + 1))
    engine = _engine(made)
    first = _job(engine, [*stem, 5], SamplingParams(max_tokens=4))
    _run(engine)
    rows = engine.statistics.rows
    second = _job(engine, [*stem, 6], SamplingParams(max_tokens=4))
    engine.step()
    assert first.found == 0 and second.found == 4 * PAGE_TOKENS
    _run(engine)
    assert engine.statistics.rows - rows < PAGE_TOKENS
    assert second.made == solo(made, second.prompt, second.params)
    engine.forget()
    third = _job(engine, [*stem, 7], SamplingParams(max_tokens=4))
    _run(engine)
    assert third.found == 0


def test_prompts_at_once_are_computed_once(made):
    """Sixteen texts of one prompt cost little more than one."""
    engine = _engine(made)
    prompt = list(range(1, 3 * PAGE_TOKENS + 3))
    for seed in range(8):
        _job(engine, prompt, SamplingParams(max_tokens=1, temperature=1), seed)
    _run(engine)
    assert engine.statistics.rows < len(prompt) + 8 * PAGE_TOKENS


@pytest.mark.parametrize("repeats", [1, 3, 8])
def test_repeats_change_nothing(made, repeats):
    engine = _engine(made, repeats=repeats)
    jobs = [_job(engine, [number, 3], SamplingParams(max_tokens=30 + number)) for number in (1, 4)]
    _run(engine)
    for job in jobs:
        assert job.made == solo(made, job.prompt, job.params)
    assert engine.statistics.new_tokens == sum(len(job.made) for job in jobs)
    steps = engine.statistics.steps
    assert (steps < 20) if repeats == 8 else (steps > 10)
    again = _job(engine, [*jobs[0].prompt, *jobs[0].made, 5], SamplingParams(max_tokens=5))
    _run(engine)
    assert again.made == solo(made, again.prompt, again.params)


@pytest.mark.parametrize("repeats", [1, 8])
def test_context_can_be_filled(made, repeats):
    engine = _engine(made, repeats=repeats)
    job = _job(engine, [5] * 1001, SamplingParams(max_tokens=None, ignore_eos=True))
    _run(engine)
    assert job.finish_reason == "length" and len(job.tokens) == 1024
    assert job.made == solo(made, job.prompt, SamplingParams(max_tokens=23, ignore_eos=True))


def test_cancelled_while_it_waits(made):
    engine = _engine(resized(made, sequences=1))
    first, second = (_job(engine, [n], SamplingParams(max_tokens=5)) for n in (1, 2))
    engine.step()
    engine.cancel(second)
    engine.cancel(second)
    assert second.finish_reason == "cancelled" and second.made == []
    _run(engine)
    engine.cancel(first)
    assert first.finish_reason in ("length", "eos")


@pytest.mark.parametrize("prompt, params, message", [
    ([], {}, "a prompt must have at least one token"),
    ([515], {}, "a token must be below 515, not 515"),
    ([1], {"max_tokens": 1024},
     r"prompt and new tokens must be at most 1024 tokens, not 1 \+ 1024;"),
    ([1] * 1024, {"max_tokens": None}, r"prompt and new tokens must be at most 1024 tokens"),
    ([1], {"logit_bias": {515: 1.0}},
     "logit_bias and stop_token_ids must be of tokens below 515, not 515"),
])
def test_requests_wrong(made, prompt, params, message):
    with pytest.raises((SessionError, ValueError), match=f"^{message}"):
        _engine(made).check(prompt, SamplingParams(**params))


def test_golden_logits_are_solo(made):
    """On the golden model, to the bit: logits in a batch that shares pages, and alone."""
    source = random.Random(3)
    stem = _tokens(source, 2 * PAGE_TOKENS)
    engine = _engine(made, GoldenDevice, every_logit=True)
    seen = {}
    read = engine._answer

    def answer(job, row, repeats):
        seen.setdefault(job.number, []).append(engine.session.logits(row))
        return read(job, row, repeats)

    engine._answer = answer
    jobs = [_job(engine, stem + _tokens(source, count), SamplingParams(
        max_tokens=6, temperature=count / 9, ignore_eos=True), count) for count in (1, 9, 30)]
    for _ in range(3):
        engine.step()
    jobs.append(_job(engine, stem + [5], SamplingParams(max_tokens=6, ignore_eos=True)))
    _run(engine)
    assert jobs[-1].found == 2 * PAGE_TOKENS
    for job in jobs:
        alone = Session(GoldenDevice(made))
        sequence = alone.open()
        fed = [alone.feed(sequence, job.prompt)]
        fed += [alone.feed(sequence, [token]) for token in job.made[:-1]]
        np.testing.assert_array_equal(np.stack(seen[job.number]), np.concatenate(fed))
