"""The bundled models against ONNX Runtime, an independent reference of the same arithmetic.

ONNX Runtime's ``accuracy_level=4`` quantizes activations as the contract does, so the two differ by
fp32 rounding only, until a value falls on the other side of a rounding boundary of the int8
quantizer. From then on the two runs are different samples of eight-bit noise. The test therefore
gives both the same past (``teacher-forced``): each position's keys and values come from ONNX
Runtime, and each position is compared on its own. The yardstick is ONNX Runtime itself, whose
decoding of one token and whose prefill of many differ in the same way.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from alula.compiler.compile import Options, compile
from alula.compiler.importer import import_model
from alula.host.device import GoldenDevice
from alula.host.generate import measure, session_logits
from alula.host.reference import onnx_logits
from alula.host.session import Session
from alula.host.text import Text, read_files
from alula.hw.arch import SIM
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS
from alula.sim.golden import EXACT_CHOICES

BUNDLED = Path(str(files("alula.host.bundled")))
POSITIONS = 256
CONTENT = (BUNDLED / "validation.txt").read_text(encoding="utf-8")


class Case:
    """A bundled model: compiled, and in ONNX Runtime with its cache in view."""

    def __init__(self, name: str) -> None:
        self.directory = BUNDLED / name
        graph, _ = import_model(self.directory)
        self.program = compile(graph, SIM, Options(context=1024),
                               tokenizer=read_files(self.directory))
        self.text = Text(self.program.tokenizer)
        self.tokens = self.text.encode(CONTENT[:4000])[:POSITIONS]
        self.reference, self.cache = self._onnx()

    def _onnx(self):
        """Return logits ``(positions, vocab)`` and the cache, ``[key or value, layer]``."""
        self.onnx = onnxruntime.InferenceSession(str(self.directory / "model.onnx"))
        empty = np.zeros((2, self.program.model.layers, self.program.model.kv_heads, 0,
                          self.program.model.head_dim), np.float32)
        return self._run_onnx(self.tokens, empty)

    def _run_onnx(self, tokens, past):
        model = self.program.model
        length = len(tokens) + past.shape[3]
        feed = {"input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, length), np.int64)}
        names = []
        for part, kind in enumerate(("key", "value")):
            for layer in range(model.layers):
                feed[f"past_key_values.{layer}.{kind}"] = past[part, layer][None]
                names.append(f"present.{layer}.{kind}")
        logits, *cache = self.onnx.run(["logits", *names], feed)
        return logits[0], np.stack(cache)[:, 0].reshape(
            2, model.layers, model.kv_heads, length, model.head_dim)

    def decoded(self):
        """ONNX Runtime's logits of each position decoded alone, its past being the prefill's."""
        return np.concatenate([
            self._run_onnx([token], np.ascontiguousarray(self.cache[:, :, :, :position]))[0]
            for position, token in enumerate(self.tokens)])

    def session(self, exact=frozenset()):
        return Session(GoldenDevice(self.program, exact))

    def forced(self):
        """Golden logits of each position, its past being ONNX Runtime's fp32 cache."""
        session = self.session(EXACT_CHOICES)
        sequence = session.open()
        out = []
        for position, token in enumerate(self.tokens):
            session.reserve(sequence, position + 1)
            self._give(session.device.machine, session.pages[sequence], position)
            out.append(session.feed(sequence, [token])[0])
        return np.stack(out)

    def _give(self, machine, pages, position):
        """Overwrite the cache's exact copies of the position before with the reference's."""
        if not position:
            return
        page, offset = divmod(position - 1, PAGE_TOKENS)
        for (layer_start, slot, page_class), held in machine.cache_values.items():
            if slot == pages[page] and page_class == page % PAGE_CLASSES:
                starts = sorted({start for start, _, _ in machine.cache_values})
                held[:, :, offset] = self.cache[:, starts.index(layer_start), :, position - 1]

    def error(self, logits):
        """Worst error at each position, as a share of the reference's range there."""
        spread = self.reference.max(-1) - self.reference.min(-1)
        return np.abs(logits - self.reference).max(-1) / spread

    def loss(self, logits):
        wide = logits[:-1].astype(np.float64)
        wide -= wide.max(-1, keepdims=True)
        chosen = wide[np.arange(POSITIONS - 1), self.tokens[1:]]
        return float(np.mean(np.log(np.exp(wide).sum(-1)) - chosen))


@pytest.fixture(scope="module", params=["dense", "sparse"])
def case(request):
    return Case(request.param)


def _report(case, what, error):
    print(f"{case.directory.name}, {what}: median {np.median(error):.2e}, "
          f"99 % {np.quantile(error, 0.99):.2e}, worst {error.max():.2e} of the range; "
          f"{np.mean(error > ROUNDING):.1%} of positions differ by more than rounding")


ROUNDING = 1e-5  # of the range: fp32 rounding stays below, a changed int8 code is above


def test_logits_with_fp32_cache(case):
    error, own = case.error(case.forced()), case.error(case.decoded())
    _report(case, "golden against ONNX Runtime", error)
    _report(case, "ONNX Runtime's decode against its prefill", own)
    assert np.median(error) <= 1e-6
    assert np.mean(error > ROUNDING) <= max(1.5 * np.mean(own > ROUNDING), 0.02)
    assert np.quantile(error, 0.99) <= max(1.5 * np.quantile(own, 0.99), 2e-3)
    assert error.max() <= 1e-2


def test_loss_with_int8_cache(case):
    session = case.session()
    logits = session.feed(session.open(), case.tokens, all_logits=True)
    ours, theirs = case.loss(logits), case.loss(case.reference)
    print(f"{case.directory.name}: loss {ours:.5f}, reference {theirs:.5f}")
    assert abs(ours / theirs - 1) <= 0.005
    error = case.error(logits).max() * (case.reference.max(-1) - case.reference.min(-1))
    best = np.sort(case.reference, axis=-1)
    clear = best[:, -1] - best[:, -2] > 2 * error
    assert clear.mean() > 0.1
    assert (logits.argmax(-1) == case.reference.argmax(-1))[clear].all()


def test_ablation(case):
    """What leaves the reference: each choice alone in fp32, then all."""
    for exact in (frozenset(), *(frozenset({one}) for one in sorted(EXACT_CHOICES)),
                  EXACT_CHOICES):
        session = case.session(exact)
        error = case.error(session.feed(session.open(), case.tokens, all_logits=True))
        print(f"{case.directory.name}: in fp32 {', '.join(sorted(exact)) or 'nothing'}: median "
              f"{np.median(error):.2e}, 99 % {np.quantile(error, 0.99):.2e}")
        assert np.median(error) < 1e-2


def test_evaluation_agrees(case):
    content = CONTENT[:4000]
    ours = measure(session_logits(case.session()), case.text, content, 128)
    theirs = measure(onnx_logits(case.directory, case.program.model.head_dim), case.text, content,
                     128)
    assert ours.tokens == theirs.tokens and ours.bytes == theirs.bytes
    assert abs(ours.loss / theirs.loss - 1) <= 0.005
