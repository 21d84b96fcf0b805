"""What a status record says, in words: the error, the instruction, what it waits for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alula.compiler.program import Program
from alula.hw import isa
from alula.hw.csr import Error, State

CAUSES = {
    Error.NONE: "nothing is wrong",
    Error.OPCODE: "it is none of the instruction set's; the program in memory was changed",
    Error.PROGRAM: "the program is longer than the build holds",
    Error.STEP: "the step table breaks a rule",
    Error.LOAD: "reading the control memory gave a bus error",
    Error.STORE: "writing the control memory gave a bus error",
    Error.LANE: "a lane's memory gave a bus error",
    Error.WATCHDOG: "it was not done when the time was up",
}


def error(record: np.void, program: Program) -> str:
    """Return how a run ended that ended with an error."""
    kind = _named(int(record["error"]))
    text = f"{_name(kind)} at {instruction(int(record['index']), program)}"
    if isinstance(kind, Error):
        text += f", where {CAUSES[kind]}"
    if kind is Error.WATCHDOG:
        text += f": {_stall(int(record['index']), program)}"
    return f"{text}; run {record['runs']}, {record['cycles']:,} clocks"


def last(record: np.void, program: Program) -> str:
    """Return what the latest record says while a run has left none."""
    if not record["runs"]:
        return "no run has ended since the card was opened"
    return (f"run {record['runs']} was the last to end, with {_name(_named(int(record['error'])))} "
            f"at {instruction(int(record['index']), program)}")


def live(registers: Mapping[str, int], program: Program) -> str:
    """Return what the registers say of a run that has not ended."""
    index, state = registers["index"], registers["state"]
    where = f"{instruction(index, program)} after {registers['cycles']:,} clocks"
    if state == State.DRAINING:
        return f"it was stopped at {where} and waits for a bus to answer"
    if state == State.RUNNING:
        return f"it is at {where}: {_stall(index, program)}"
    return f"it is idle, its last instruction being {where}"


def instruction(index: int, program: Program) -> str:
    """Return an instruction by its number, with its text if the program has it."""
    if index < len(program.instructions):
        return f"instruction {index} ({isa.text(program.instructions[index])})"
    return f"instruction {index}"


def _stall(index: int, program: Program) -> str:
    """Return what an instruction that has not ended may wait for.

    The index is that of the latest instruction that was given to a queue; queues before which it
    waits may be at earlier ones.
    """
    if index >= len(program.instructions):
        return "which no program holds"
    found = program.instructions[index]
    needed = [queue.name for queue in isa.Queue if found.wait >> queue & 1]
    after = f", which waits for {' and '.join(needed)}" if needed else ""
    return f"{type(found).queue.name} has it{after}, and no other queue has a later one"


def _named(number: int) -> Error | int:
    return Error(number) if number in set(Error) else number


def _name(kind: Error | int) -> str:
    return kind.name if isinstance(kind, Error) else f"error {kind}"
