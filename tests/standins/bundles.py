"""Bundles whose bitstreams the stand-ins take."""

from __future__ import annotations

from alula.boards import bundle, manifest as manifests
from alula.boards.catalogue import BOARDS
from standins.fabric import bitstream


def write(board_name, arch, folder, patch):
    """Write a board's bundle with a build of any sizes, as if the vendor's tool had run."""
    board = BOARDS[board_name]
    patch.setattr(bundle, "verilog", lambda arch, primitive: "// the stand-in has its own\n")
    made = bundle.write(board, arch, folder)
    result = folder / made.bitstream
    result.parent.mkdir(exist_ok=True)
    result.write_bytes(bitstream(board, arch))
    made = made.model_copy(update={
        "tool_version": "2024.1", "bitstream_bytes": result.stat().st_size,
        "bitstream_hash": manifests.file_hash(result)})
    manifests.save(made, folder)
    return folder

