"""Bundles whose bitstreams the stand-ins take, and the texts that tests make with them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import alula
from alula.boards import bundle, manifest as manifests
from alula.boards.board import Zynq
from alula.boards.catalogue import BOARDS
from alula.host import vectors
from standins.fabric import bitstream
from standins.zynq import described

SPARSE = Path(str(files("alula.host.bundled"))) / "sparse"
PROMPTS = ["The", "Note that it"]
PARAMS = alula.SamplingParams(max_tokens=4)


def tokens(program, device):
    """Return the device that made the last token, and two texts."""
    with alula.LLM(program, device=device) as llm:
        made = [result.outputs[0].token_ids for result in llm.generate(PROMPTS, PARAMS)]
        return llm.device, made


def is_usable(program, device, golden):
    """Return whether a card makes the first tokens that it should."""
    with alula.LLM(program, device=device) as llm:
        one = llm.generate(PROMPTS[0], alula.SamplingParams(max_tokens=2))[0]
        return llm.device != "golden" and one.outputs[0].token_ids == golden[0][:2]


def write(board_name, arch, folder, patch, *, selftest=False):
    """Write a board's bundle with a build of any sizes, as if the vendor's tool had run."""
    board = BOARDS[board_name]
    patch.setattr(bundle, "verilog", lambda arch, primitive: "// the stand-in has its own\n")
    made = bundle.write(board, arch, folder)
    result = folder / made.bitstream
    result.parent.mkdir(exist_ok=True)
    result.write_bytes(bitstream(board, arch))
    if isinstance(board, Zynq):
        result.with_suffix(".hwh").write_text(described())
    made = made.model_copy(update={
        "selftest": vectors.write(arch, folder) if selftest else None,
        "tool_version": "2024.1", "bitstream_bytes": result.stat().st_size,
        "bitstream_hash": manifests.file_hash(result)})
    manifests.save(made, folder)
    return folder

