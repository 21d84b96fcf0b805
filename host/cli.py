"""The command line: ``alula COMMAND``. Only this module reads the environment and exits."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from alula.compiler.importer import Refused
from alula.host.bench_command import bench
from alula.host.boards_command import boards, build, selftest
from alula.host.choice import NoDevice
from alula.host.compared import Mismatch
from alula.host.deploy_command import deploy
from alula.host.model_command import compile_command, compress, disasm, inspect
from alula.host.options import Json
from alula.host.perf_command import explore, perf
from alula.host.run_command import demo, evaluate, run
from alula.host.screen import LOG, Screen
from alula.host.talk_command import chat, serve
from alula.hw import isa
from alula.sim.rtl.build import BuildError
from alula.sim.rtl.simulation import RunError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Run large language models on FPGAs.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alula {installed_version('alula')}, instruction set {isa.isa_hash()}")
        raise typer.Exit


@app.callback()
def common(version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Options of no command."""


def main() -> None:
    """Run the command line; a mistake of the user ends in one line and a non-zero exit."""
    try:
        sys.exit(app(standalone_mode=False))  # a command's typer.Exit comes back as its code
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Refused as refusal:
        _fail(str(refusal), 2)
    except (ValueError, OSError, MemoryError, ImportError, BuildError, RunError, Mismatch,
            NoDevice) as error:
        LOG.error("%s", traceback.format_exc())
        _fail(str(error) or type(error).__name__, 1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # of click, or typer
            _fail(error.format_message(), error.exit_code)
        raise


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"alula: {message}\n")
    sys.exit(code)


def doctor(as_json: Json = False) -> None:
    """Say what this machine has and what it can run."""
    from alula.host.doctor import examine

    screen = Screen(as_json=as_json)
    found = examine()
    screen.table("This machine", ("what", "found", "needed for"),
                 [(check["name"], check["found"], check["purpose"]) for check in found])
    screen.result({"checks": found, "log": str(screen.log)})


for name, command in (
        ("inspect", inspect), ("compress", compress), ("compile", compile_command),
        ("disasm", disasm), ("run", run), ("chat", chat), ("serve", serve), ("eval", evaluate),
        ("demo", demo), ("bench", bench), ("perf", perf), ("explore", explore),
        ("boards", boards), ("build", build), ("selftest", selftest), ("deploy", deploy),
        ("doctor", doctor)):
    app.command(name=name)(command)


if __name__ == "__main__":
    main()
