"""All boards, by name."""

from alula.boards import kv260, pynq_z2, u50, u55c, u280, zcu104
from alula.boards.board import Board

BOARDS: dict[str, Board] = {
    module.BOARD.name: module.BOARD for module in (u55c, u280, u50, zcu104, kv260, pynq_z2)}


def board(name: str) -> Board:
    """Return the named board; raise ValueError with the known names if there is none."""
    if name not in BOARDS:
        raise ValueError(f"board must be one of {', '.join(BOARDS)}, not {name!r}")
    return BOARDS[name]
