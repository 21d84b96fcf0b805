"""Another machine, by the system's ssh: its keys, its known hosts, its settings."""

from __future__ import annotations

import logging
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

LOG = logging.getLogger("alula")
UNREACHABLE = 255  # what ssh exits with if it is ssh that failed
_PIECE = 1 << 20


class RemoteError(OSError):
    """A machine cannot be reached, or a command on it failed."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine and how to reach it; what is not given is as ssh has it for that name.

    ``options`` are ssh's own, each as after its ``-o``.
    """

    name: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith("-"):
            raise ValueError(f"a host must be a name or an address, not {self.name!r}")
        if self.key is not None and not self.key.is_file():
            raise ValueError(f"{self.key} must be the file of a key; there is none")

    @property
    def target(self) -> str:
        return f"{self.user}@{self.name}" if self.user else self.name

    def _command(self, text: str) -> list[str]:
        words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
        for option in self.options:
            words += ["-o", option]
        words += ["-p", str(self.port)] if self.port else []
        words += ["-i", str(self.key)] if self.key else []
        return [*words, "--", self.target, text]

    def run(self, text: str, what: str, *, codes: tuple[int, ...] = (0,)) -> str:
        """Run a shell command there; return what it prints.

        Parameters
        ----------
        what
            What the command is to do, for messages.
        codes
            Exit codes that are no failure.

        Raises
        ------
        RemoteError
            If the machine is not reached, or the command ends with another code.
        """
        process = _started(self._command(text), stdin=subprocess.DEVNULL)
        out, err = process.communicate()
        self._check(process.returncode, codes, err, what)
        LOG.info("%s: %s\n%s%s", self.target, what, out.decode(errors="replace"),
                 err.decode(errors="replace"))
        return out.decode(errors="replace")

    def copy(self, files: Mapping[str, Path], folder: str,
             advance: Callable[[float], None]) -> None:
        """Copy files into a folder there, which is made; names are relative to it."""
        place = shlex.quote(folder)
        process = _started(self._command(f"mkdir -p {place} && tar -xf - -C {place}"),
                           stdin=subprocess.PIPE)
        assert process.stdin is not None
        counted = cast(IO[bytes], _Counted(process.stdin, advance))
        with suppress(BrokenPipeError):  # what the other side says of it comes below
            with tarfile.open(fileobj=counted, mode="w|") as archive:
                for name, path in files.items():
                    archive.add(path, name)
        _, err = process.communicate()
        self._check(process.returncode, (0,), err, f"copy files to {folder}")

    def _check(self, code: int, codes: tuple[int, ...], err: bytes, what: str) -> None:
        if code in codes:
            return
        lines = err.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        LOG.error("%s: %s\n%s", self.target, what, "\n".join(lines))
        if code == UNREACHABLE:
            raise RemoteError(f"{self.target} must be reachable by ssh without a password, not: "
                              f"{lines[-1].strip()}; see that `ssh {self.target}` works")
        raise RemoteError(f"{self.target} must {what}, not end with {code}: {lines[-1].strip()}")


class _Counted:
    """A stream that tells how much was written."""

    def __init__(self, stream: IO[bytes], advance: Callable[[float], None]) -> None:
        self._stream, self._advance = stream, advance

    def write(self, data: bytes) -> int:
        for at in range(0, len(data), _PIECE):
            self._stream.write(data[at:at + _PIECE])
            self._advance(len(data[at:at + _PIECE]))
        return len(data)


def _started(command: list[str], stdin: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise RemoteError("ssh must be on PATH, not absent; install OpenSSH's client") from None
