"""Bundles of this machine, and the one that takes a program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

from alula.boards import manifest as manifests
from alula.boards.board import Alveo, Board
from alula.boards.catalogue import board
from alula.boards.manifest import Manifest, ManifestError
from alula.compiler.program import Program
from alula.host.cards.link import CardError
from alula.host.cards.place import ALVEO, PYNQ


@dataclass(frozen=True)
class Bundle:
    """A folder that ``alula build`` has written, with its bitstream."""

    folder: Path
    manifest: Manifest

    @property
    def bitstream(self) -> Path:
        return self.folder / self.manifest.bitstream

    @property
    def board(self) -> Board:
        return board(self.manifest.board)

    @property
    def kind(self) -> str:
        """The device that loads it."""
        return ALVEO if isinstance(self.board, Alveo) else PYNQ


def folder() -> Path:
    """Return the folder whose subfolders are this user's bundles."""
    return Path(platformdirs.user_data_dir("alula", appauthor=False)) / "bundles"


def load(path: Path) -> Bundle:
    """Read a bundle; raise ManifestError if its bitstream is absent or not what was made.

    The hash is of the whole file: a file that was cut, or comes from another build, is found out
    before a card sees it.
    """
    bundle = Bundle(path, manifests.load(path))
    made, file = bundle.manifest, bundle.bitstream
    if not file.is_file():
        raise ManifestError(f"{file} must be there; sh {path / 'build.sh'} makes it")
    size = file.stat().st_size
    if made.bitstream_bytes is not None and size != made.bitstream_bytes:
        raise ManifestError(f"{file} must have {made.bitstream_bytes:,} bytes, not {size:,}: it "
                            "was cut short or comes from another build; copy the bundle again")
    if made.bitstream_hash is not None:
        found = _hash(file, file.stat().st_mtime_ns)
        if found != made.bitstream_hash:
            raise ManifestError(f"{file} must have hash {made.bitstream_hash[:16]}, not "
                                f"{found[:16]}: it was altered; copy the bundle again")
    return bundle


@cache
def _hash(path: Path, changed_ns: int) -> str:
    return manifests.file_hash(path)


def choose(kind: str, program: Program, wanted: Path | None) -> Bundle:
    """Return the bundle that a program is to run on.

    Parameters
    ----------
    wanted
        Its folder; None: the first of :func:`folder` that is for the device and the program.

    Raises
    ------
    ManifestError
        If the bundle is for other programs; both hashes are in the message.
    CardError
        If none was named and none fits.
    """
    if wanted is not None:
        bundle = load(wanted)
        if bundle.kind != kind:
            raise ManifestError(f"{wanted} must be a bundle for {kind}, not for "
                                f"{bundle.manifest.board}, which is {bundle.kind}'s")
        manifests.check(bundle.manifest, program.arch)
        return bundle
    problems = []
    for path in sorted(folder().glob(f"*/{manifests.FILE}")):
        try:
            bundle = load(path.parent)
            if bundle.kind != kind:
                continue
            manifests.check(bundle.manifest, program.arch)
            return bundle
        except ValueError as error:
            problems.append(f"{path.parent.name}: {error}")
    raise CardError("; ".join(problems) if problems else
                    f"a bundle for {kind} must be in {folder()}, not none; alula build makes one, "
                    f"and --device {kind}@DIR names one elsewhere")

