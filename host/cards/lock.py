"""A card is one process's at a time: a file that is locked while the card is open."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from alula.host.cards.link import CardError


def lock_path(key: str) -> Path:
    """Return the file of a card; ``key`` names it on this machine."""
    return Path(tempfile.gettempdir()) / f"alula-{key.replace('/', '-').replace(':', '-')}.lock"


class Lock:
    """The right to use a card, until it is closed or the process ends.

    Raises
    ------
    CardError
        If another process, or another device of this one, has it; the message names the process.
    """

    def __init__(self, name: str, key: str) -> None:
        path = lock_path(key)
        self._file: int | None = _open(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            self.close()
            raise CardError(f"{name} must be free, not in use by process {holder}; stop that, or "
                            "name another card") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def in_use(key: str) -> bool:
    """Whether somebody has a card open."""
    try:
        file = os.open(lock_path(key), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _open(path: Path) -> int:
    """Open a file that all users may lock, made if it is not there.

    Not by one call: in a folder that all may write to, Linux lets nobody *create* what another has.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        made = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, 0o666)
        os.fchmod(made, 0o666)
        return made
    except OSError as error:
        raise CardError(f"{path} must be a file that can be locked, not fail: {error.strerror}; "
                        "remove it") from None
