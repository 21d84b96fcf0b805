"""A folder with all that the vendor's tool needs to make a board's bitstream, and running it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path

from alula.boards import manifest as manifests, reports
from alula.boards.board import Alveo, Board
from alula.boards.manifest import Manifest
from alula.boards.scripts import CARD, OVERLAY, STAGE, VERILOG, scripts
from alula.boards.shell import shell
from alula.hw import isa
from alula.hw.arch import ArchConfig
from alula.hw.top import verilog

LOG = "build.log"
Report = Callable[[int, int, str], None]  # number of a stage, of how many, its title


class ToolError(RuntimeError):
    """The vendor's tool stopped with an error, or its result is not there."""


def write(board: Board, arch: ArchConfig, target: Path) -> Manifest:
    """Write a board's files to a folder that is empty or absent; it has them all, or none."""
    with _whole(target) as folder:
        texts = dict(zip(VERILOG, (verilog(arch, board.part.primitive), shell(arch)), strict=True))
        for name, text in (texts | scripts(board, arch)).items():
            (folder / name).write_text(text)
        (folder / "build.sh").chmod(0o755)
        made = Manifest(
            alula=installed_version("alula"), board=board.name, part=board.device, arch=arch,
            arch_hash=arch.hash, isa_hash=isa.isa_hash(), clock_hz=arch.clock_hz,
            memory=board.ports(arch), tool=board.tool.name, bitstream=bitstream(board))
        manifests.save(made, folder)
    return made


def bitstream(board: Board) -> str:
    """Return the name of what a runtime loads, below the bundle's folder."""
    return CARD if isinstance(board, Alveo) else f"{OVERLAY}.bit"


def check_target(target: Path) -> None:
    """Raise ValueError unless a folder can be made at a path, or is there and empty."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} must be a folder that is empty or absent, not a file")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} must be a folder that is empty or absent, not one with files; "
                         "remove it, or name another")
    above = target.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"{target} must be in a folder that can be written, not in {above}; "
                         "name another")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``target`` if all goes well."""
    check_target(target)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(target)  # an empty folder may be there
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def missing_commands(board: Board) -> list[str]:
    """Return which of the tool's commands are not on PATH."""
    return [command for command in board.tool.commands if shutil.which(command) is None]


def tool_version(board: Board) -> str:
    """Return the version of the tool on PATH; raise ToolError if the board cannot use it."""
    command = [board.tool.commands[0], "-version"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bv(\d{4}\.\d+(?:\.\d+)?)", text)
    if not found:
        raise ToolError(f"`{' '.join(command)}` must print a version such as v2024.1, "
                        f"not {text[:60]!r}")
    if not board.tool.knows(found[1]):
        raise ToolError(f"{board.tool.name} must be {board.tool.versions} for {board.name}, "
                        f"not {found[1]}")
    return found[1]


def run(board: Board, folder: Path, version: str, report: Report) -> Manifest:
    """Run a bundle's ``build.sh``; return its manifest with what came of it.

    Parameters
    ----------
    report
        Called as a stage begins.

    Raises
    ------
    ToolError
        If the tool fails, or leaves no bitstream; the message says where the log is.
    """
    log = folder / LOG
    with log.open("w") as out, subprocess.Popen(
            ["sh", "build.sh"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            out.flush()
            if found := re.match(rf"{STAGE} (\d+)/(\d+) (.*)", line):
                report(int(found[1]), int(found[2]), found[3])
    if process.returncode:
        raise ToolError(f"{board.tool.name} must end well, not with {process.returncode}; "
                        f"see {log}")
    made = manifests.load(folder)
    result = folder / made.bitstream
    if not result.is_file():
        raise ToolError(f"{board.tool.name} must write {result}; see {log}")
    outcome = reports.read(folder)
    made = made.model_copy(update={
        "tool_version": version, "bitstream_bytes": result.stat().st_size,
        "bitstream_hash": manifests.file_hash(result), "slack_ns": outcome.timing.setup_ns,
        "utilization": {what: round(one.share, 4) for what, one in outcome.used.items()}})
    manifests.save(made, folder)
    return made
