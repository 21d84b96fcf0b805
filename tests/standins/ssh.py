"""Machines to be reached by ssh, on this one: real servers, with a home of their own."""

from __future__ import annotations

import asyncio
import getpass
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SSHD = Path("/usr/sbin/sshd")


class Machine:
    """Where a server listens, and how ``alula deploy`` is told to go there."""

    def __init__(self, root):
        self.home = root / "home"
        self.home.mkdir()
        self.port = _free_port()
        self.key, self.host_key = root / "key", root / "host_key"
        for path in (self.key, self.host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)],
                           check=True)
        known = root / "known_hosts"
        known.write_text(f"[127.0.0.1]:{self.port} {(root / 'host_key.pub').read_text()}")
        self.options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes"]

    @property
    def arguments(self):
        return ["--host", "127.0.0.1", "--port", str(self.port), "--key", str(self.key),
                "--user", getpass.getuser(),
                *(word for option in self.options for word in ("--ssh-option", option))]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def _pass_on(source, target):
    while data := await source.read(1 << 16):
        target.write(data)


async def _feed(source, target):
    with suppress(OSError):  # who runs may not read it all
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


@contextmanager
def asyncssh_machine(root, environment):
    """Run AsyncSSH's server; commands have only what ``environment`` says."""
    import asyncssh

    machine = Machine(root)

    async def execute(session):
        shell = await asyncio.create_subprocess_shell(
            session.command or "", cwd=machine.home, env=environment | {"HOME": str(machine.home)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        feeding = asyncio.create_task(_feed(session.stdin, shell.stdin))
        await asyncio.gather(_pass_on(shell.stdout, session.stdout),
                             _pass_on(shell.stderr, session.stderr))
        session.exit(await shell.wait())
        feeding.cancel()

    loop = asyncio.new_event_loop()

    async def listen():
        return await asyncssh.listen(
            "127.0.0.1", machine.port, server_host_keys=[str(machine.host_key)],
            authorized_client_keys=str(machine.key.with_suffix(".pub")),
            process_factory=execute, encoding=None)

    server = loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield machine
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def openssh_machine(root, environment):
    """Run OpenSSH's server, as this user and for this user."""
    machine = Machine(root)
    shutil.copy(machine.key.with_suffix(".pub"), root / "authorized")
    settings = root / "sshd_config"
    variables = " ".join(f'"{name}={value}"' for name, value in environment.items())
    settings.write_text(
        f"ListenAddress 127.0.0.1:{machine.port}\nHostKey {machine.host_key}\n"
        f"AuthorizedKeysFile {root}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"
        f'SetEnv {variables} "FAR_HOME={machine.home}"\nPermitRootLogin yes\n'
        'ForceCommand cd "$FAR_HOME" && HOME="$FAR_HOME" exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    Path("/run/sshd").mkdir(exist_ok=True) if getpass.getuser() == "root" else None
    with subprocess.Popen([SSHD, "-D", "-e", "-f", settings], stderr=subprocess.PIPE) as server:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", machine.port)) == 0:
                    break
            time.sleep(0.05)
        try:
            yield machine
        finally:
            server.terminate()
