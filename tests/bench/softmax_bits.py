"""Measure the loss for several widths of softmax weights: ``python tests/bench/softmax_bits.py``.

The width in use is ``numerics.SOFTMAX_BITS``; docs/numbers.md keeps this table.
"""

from importlib.resources import files
from pathlib import Path

from alula.compiler.compile import Options, compile
from alula.compiler.importer import import_model
from alula.host.device import GoldenDevice
from alula.host.generate import measure, session_logits
from alula.host.session import Session
from alula.host.text import Text, read_files
from alula.hw import numerics
from alula.hw.arch import SIM

BYTES = 24_000
WINDOW = 512


def main() -> None:
    bundled = Path(str(files("alula.host.bundled")))
    content = (bundled / "validation.txt").read_text(encoding="utf-8")[:BYTES]
    for name in ("dense", "sparse"):
        graph, _ = import_model(bundled / name)
        program = compile(graph, SIM, Options(), tokenizer=read_files(bundled / name))
        text = Text(program.tokenizer)
        for bits in (6, 8, 10, 12, 14, 16):
            numerics.SOFTMAX_MAX = (1 << bits) - 1
            loss = measure(session_logits(Session(GoldenDevice(program))), text, content, WINDOW)
            print(f"{name} {bits} bits: loss {loss.loss:.5f} over {loss.tokens} tokens", flush=True)
        for exact in ("query", "cache", "softmax"):
            numerics.SOFTMAX_MAX = (1 << numerics.SOFTMAX_BITS) - 1
            device = GoldenDevice(program, frozenset({exact}))
            loss = measure(session_logits(Session(device)), text, content, WINDOW)
            print(f"{name} {exact} in fp32: loss {loss.loss:.5f}", flush=True)


if __name__ == "__main__":
    main()
