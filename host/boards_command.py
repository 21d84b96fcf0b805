"""``alula boards`` and ``alula build``: what there is, and the files for the vendor's tool."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from alula.boards import bundle, manifest as manifests, reports
from alula.boards.board import Board
from alula.boards.bundle import LOG, ToolError
from alula.boards.catalogue import BOARDS, board as find
from alula.boards.estimate import check_room, describe, estimate
from alula.compiler.recipe import parse
from alula.host import vectors
from alula.host.cards.found import cards_here, measured
from alula.host.fits import fitting
from alula.host.options import Json, Quiet
from alula.host.predicted import CONTEXT, RECIPE, kept
from alula.host.screen import Screen
from alula.hw.arch import GIB, ArchConfig

STAGES = 3  # of build.sh
SELFTEST_STEPS = 5


def boards(as_json: Json = False,
           ) -> None:
    """List boards: their builds, tools, limits, and the models they hold, with their speeds."""
    screen = Screen(as_json=as_json)
    facts = [_facts(board) for board in BOARDS.values()]
    screen.table("Boards; none was verified on a card", (
        "board", "lanes", "MHz", "GiB of lanes", "tool", "runtime", "verified with"),
        [tuple(fact[key] for key in ("board", "lanes", "clock_mhz", "lanes_gib", "tool",
                                     "runtime", "verified")) for fact in facts])
    for fact in facts:
        screen.text(f"\n{fact['title']}, {fact['part']}\n"
                    + "".join(f"  {limit}\n" for limit in fact["limits"]))
        if fact["fits"]:
            screen.table(f"{fact['board']}: known models that its memory holds, {RECIPE}, "
                         f"{CONTEXT} tokens in the cache",
                         ("model", "tokens/s", "memory's limit"),
                         [(name, _rate(one["tokens_per_s"]) if one["runs"] else "buffers too small",
                           _rate(one["at_most"]))
                          for name, one in fact["fits"].items()])
            if fact["predicted"]:
                screen.text(f"  tokens/s: predicted by the cycle model, {fact['predicted']}; alula "
                            "perf predicts others\n")
    cards = cards_here()
    if cards:
        screen.table("Cards of this machine", (
            "device", "platform", "address", "in use", "clock", "temperature", "power"),
            [(card.name, card.platform, card.address, "yes" if card.in_use else "no",
              *measured(card).values()) for card in cards])
    else:
        screen.text("\nNo card answers on this machine; alula doctor says what is missing\n")
    screen.result({"cards": [asdict(card) for card in cards], "recipe": RECIPE,
                   "context": CONTEXT, "boards": facts})


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.{0 if rate > 99 else 1}f}"


def _facts(board: Board) -> dict[str, Any]:
    arch, known = board.arch, kept().get(board.name)
    rates = known["tokens_per_s"] if known else {}
    limits = [f"area: {describe(board, arch)}"]
    if shortage := board.shortage(arch):
        limits.append(shortage)
    return {
        "board": board.name, "title": board.title, "part": board.device, "lanes": arch.lanes,
        "clock_mhz": board.clock_mhz,
        "lanes_gib": arch.lanes * arch.channel_bytes / GIB, "control_gib": arch.control_bytes / GIB,
        "tool": f"{board.tool.name} {board.tool.versions}", "runtime": board.runtime,
        "verified": board.verified, "ports": board.ports(arch),
        "fits": {name: {"tokens_per_s": rates.get(name), "at_most": most,
                        "runs": rates.get(name, most) is not None}
                 for name, most in fitting(arch, parse(RECIPE), CONTEXT).items()},
        "predicted": f"{known['date']}, commit {known['commit']}" if known else None,
        "limits": [*limits, *board.limits],
    }


def build(name: Annotated[str, typer.Argument(
            metavar="BOARD", help=f"One of {', '.join(BOARDS)}.")],
          out: Annotated[Path, typer.Option(
              "-o", "--out", metavar="DIR", help="Folder to write, empty or absent.")],
          lanes: Annotated[int | None, typer.Option(help="Lanes; all of them if not given.")]
          = None,
          force: Annotated[bool, typer.Option(
              "--force", help="Write the files of a build that is known not to fit.")] = False,
          files_only: Annotated[bool, typer.Option(
              "--files-only", help="Do not run the vendor's tool, even if it is here.")] = False,
          as_json: Json = False,
          quiet: Quiet = False,
          ) -> None:
    """Write all that a board's bitstream is made from, and make it where the vendor's tool is."""
    board = find(name)
    arch = board.arch if lanes is None else board.arch.with_lanes(lanes)
    bundle.check_target(out)
    if not force:
        check_room(board, arch)
    screen = Screen(as_json=as_json, quiet=quiet)
    absent = bundle.missing_commands(board)
    runs = not files_only and not absent
    with screen.steps(2 + (STAGES if runs else 0)) as steps:
        steps.begin("write the Verilog and the scripts")
        manifest = bundle.write(board, arch, out)
        steps.begin("make the self-test's vectors")
        manifest = manifest.model_copy(update={"selftest": vectors.write(arch, out)})
        manifests.save(manifest, out)
        if runs:
            try:
                manifest = bundle.run(board, out, bundle.tool_version(board),
                                      lambda at, of, title: steps.begin(title))
            except ToolError as error:
                raise ValueError(f"{error}; the files are in {out}") from error
        steps.finish()
    _tell(screen, board, arch, out, absent, forced=force)
    if runs:
        screen.table(f"{board.name}, {board.tool.name} {manifest.tool_version}",
                     ("", "used", "of", "share"), reports.read(out).rows())
    elif not absent:
        screen.note(f"the files are in {out}; run {out / 'build.sh'}")
    found = estimate(board, arch)
    screen.result({
        "board": board.name, "folder": str(out), "lanes": arch.lanes, "ran": runs,
        "missing": absent, "manifest": manifest.model_dump(),
        "estimate": {what: found.used(what) for what in found.lane.used} if found else None,
    })


def _tell(screen: Screen, board: Board, arch: ArchConfig, out: Path, absent: list[str],
          forced: bool) -> None:
    """Say what is known of the build, and what is left to do."""
    found = estimate(board, arch)
    screen.note(f"area: {describe(board, arch)}")
    if found and found.over and forced:
        screen.note(f"this build does not fit {board.part.name}; its files were written because "
                    "of --force")
    if shortage := board.shortage(arch):
        screen.note(shortage)
    if absent:
        screen.note(f"{' and '.join(absent)} must be on PATH to make {bundle.bitstream(board)}: "
                    f"{board.tool.name} {board.tool.versions} (verified with: {board.verified}). "
                    f"The files are in {out}; run sh build.sh there")
    else:
        screen.note(f"log of the tool: {out / LOG}")


def selftest(device: Annotated[str, typer.Argument(
                 metavar="CARD", help="alveo, alveo:1, pynq; alveo:1@BUNDLE names its bundle.")],
             as_json: Json = False,
             quiet: Quiet = False,
             ) -> None:
    """Test a card: registers, memories, golden vectors, bandwidth. Exits with 1 if any is wrong."""
    from alula.host.cards.selftest import run

    screen = Screen(as_json=as_json, quiet=quiet)
    with screen.steps(SELFTEST_STEPS) as steps:
        checks = list(run(device, steps.begin))
        steps.finish()
    screen.table(f"Self-test of {device}", ("check", "outcome", "found"),
                 [(check.name, check.outcome, check.found) for check in checks])
    good = all(check.ok is not False for check in checks)
    screen.result({"device": device, "good": good, "checks": [asdict(check) for check in checks]})
    if not good:
        raise typer.Exit(1)
