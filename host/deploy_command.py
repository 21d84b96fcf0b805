"""``alula deploy``: what :mod:`alula.host.deploy` does, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alula.boards.catalogue import BOARDS, board as find
from alula.host.options import Json, Quiet
from alula.host.screen import Screen

STEPS = 5


def deploy(
        board: Annotated[str, typer.Argument(
            metavar="BOARD", help=f"One of {', '.join(BOARDS)}.")],
        host: Annotated[str, typer.Option(
            help="Machine with the card: a name that ssh knows, or an address.")],
        bundle: Annotated[Path | None, typer.Option(
            metavar="DIR", help="What alula build wrote; ./BOARD if not given.")] = None,
        program: Annotated[Path | None, typer.Option(
            metavar="FILE", help="Program to serve there; without one nothing is.")] = None,
        user: Annotated[str | None, typer.Option(help="User there.")] = None,
        port: Annotated[int | None, typer.Option(
            min=1, max=65_535, help="Port of ssh there.")] = None,
        key: Annotated[Path | None, typer.Option(help="File of a private key.")] = None,
        ssh_option: Annotated[list[str] | None, typer.Option(
            metavar="NAME=VALUE", help="An option of ssh's; may be repeated.")] = None,
        folder: Annotated[str, typer.Option(help="Folder there.")] = "alula",
        python: Annotated[str | None, typer.Option(
            help="Python there; PYNQ's where there is one, else python3.")] = None,
        wheel: Annotated[Path | None, typer.Option(
            help="Wheel of alula; made of the source that this one runs from, if not given.")]
        = None,
        offline: Annotated[bool, typer.Option(
            "--offline", help="Take no package from an index there.")] = False,
        sudo: Annotated[bool, typer.Option(
            "--sudo", help="Run as root there, as PYNQ asks for.")] = False,
        serve_host: Annotated[str, typer.Option(
            help="Address that the service listens at.")] = "127.0.0.1",
        serve_port: Annotated[int, typer.Option(
            min=1, max=65_535, help="Port that the service listens at.")] = 8000,
        as_json: Json = False,
        quiet: Quiet = False,
        ) -> None:
    """Copy a bundle, a program and alula to a card's host, install, test, and leave a service.

    Exits with 1 if the self-test there finds anything wrong.
    """
    from alula.host import deploy as deploying
    from alula.host.cards.selftest import Check
    from alula.host.remote import Host

    found = deploying.check(find(board).name, bundle or Path(board), program)
    wanted = deploying.Deployment(
        host=Host(name=host, user=user, port=port, key=key, options=tuple(ssh_option or ())),
        bundle=found, program=program, wheel=wheel, folder=folder, python=python,
        offline=offline, sudo=sudo, serve_address=serve_host, serve_port=serve_port)
    screen = Screen(as_json=as_json, quiet=quiet)
    with screen.steps(STEPS) as steps:
        facts = deploying.deploy(wanted, steps.begin)
        steps.finish()
    checks = [Check(**check) for check in facts["selftest"]["checks"]]
    screen.table(f"Self-test of {board} at {facts['host']}", ("check", "outcome", "found"),
                 [(check.name, check.outcome, check.found) for check in checks])
    if facts["service"]:
        screen.note(f"a service is defined in {facts['service']}; there, "
                    f"`sudo systemctl enable --now {facts['service']}` starts it")
    screen.result(facts)
    if not facts["selftest"]["good"]:
        raise typer.Exit(1)
