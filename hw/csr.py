"""The control registers and the status record: each offset, bit and code, written once.

The map is that of an XRT-managed kernel with the ``ap_ctrl_chain`` protocol.
Ref: AMD UG1393, Vitis Application Acceleration, "RTL Kernel Requirements"; AMD UG902/UG1399,
"S_AXILITE Control Register Map".
"""

from enum import IntEnum

import numpy as np

CONTROL_BYTES = 1 << 12  # what the register port decodes


class Register(IntEnum):
    """Byte offsets. 64-bit values take two words, low first."""

    CTRL = 0x00
    GIE = 0x04  # bit 0: interrupts on
    IER = 0x08  # bit 0: on done, bit 1: on ready
    ISR = 0x0C  # the same bits; writing 1 toggles
    CONTROL = 0x10  # pointer: control memory
    STATUS = 0x18  # pointer: where the status record goes, a multiple of 64
    PROGRAM = 0x20  # first word of the program in the control memory
    INSTRUCTIONS = 0x24  # how many
    WATCHDOG = 0x28  # most clocks of a run; 0: no limit
    STATE = 0x30  # read only from here to HASH: see State
    ERROR = 0x34  # an Error
    INDEX = 0x38  # the instruction that failed
    CYCLES = 0x40  # clocks of the run, 64 bits
    HASH = 0x48  # first 64 bits of the architecture's hash
    LANES = 0x50  # how many
    LANE = 0x100  # pointers: each lane's memory, 8 bytes apart


class Ctrl(IntEnum):
    """Bits of ``CTRL``."""

    START = 0  # set by the host, cleared when the run is taken
    DONE = 1  # held until CONTINUE
    IDLE = 2
    READY = 3
    CONTINUE = 4


class State(IntEnum):
    IDLE = 0
    RUNNING = 1
    DRAINING = 2  # an error was found; transfers under way are being ended


class Error(IntEnum):
    """Why a run stopped."""

    NONE = 0
    OPCODE = 1  # no instruction has this opcode, or a field has a value it may not have
    PROGRAM = 2  # longer than the build can hold
    STEP = 3  # the step table breaks a rule
    LOAD = 4  # an error on the bus of the control memory, reading
    STORE = 5  # the same, writing
    LANE = 6  # an error on the bus of a lane
    WATCHDOG = 7


STATUS_MAGIC = 0x414C_554C  # "LULA" in memory order
STATUS = np.dtype([
    ("magic", "<u4"),
    ("error", "<u4"),
    ("index", "<u4"),  # instruction that failed, or the last one
    ("runs", "<u4"),  # runs since reset
    ("cycles", "<u8"),
    ("beats", "<u8"),  # of all lanes' read data
    ("reserved", "<u4", (8,)),
])
