"""Stand-in for XRT's Python binding: its calls, and its traps, over the simulated RTL.

Ref: XRT, ``src/python/pybind11/src/pyxrt.cpp`` and ``xrt_kernel.h``. What it shares
with the real one:

- Calling a kernel drops arguments that it cannot cast, silently; ``set_arg`` refuses them.
- ``wait`` returns a state and raises nothing; a run's failure is in the state.
- A buffer is two, host's and card's, until it is synchronized; both begin as rubbish.
- Loading the file that is loaded already resets nothing: what hangs goes on hanging.
- From 2.23 on, ``load_xclbin`` warns.

``CARDS`` are the machine's. Tests put faults into them.
"""

from __future__ import annotations

import enum
import hashlib
import json
import operator
import os
import re
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from alula.hw.csr import Ctrl, Register
from standins.fabric import Fabric, parse, rubbish

RESET_FOLDER = "STANDIN_RESET"  # environment: where the stand-in for xrt-smi leaves its orders


class Card:
    """A card in its slot. ``before_start(card)`` is called as a run starts, for faults.

    ``clocks_per_ms`` is how fast simulated time passes for those who wait.
    """

    def __init__(self, platform="xilinx_u55c_gen3x16_xdma_base_3", bdf="0000:65:00.1",
                 bank_bytes=16 << 20, banks=32, clocks_per_ms=200_000):
        self.platform, self.bdf, self.clocks_per_ms = platform, bdf, clocks_per_ms
        # Further apart than they are: no address is ever used twice.
        self.banks = {f"HBM[{at}]": (at << 34, bank_bytes) for at in range(banks)}
        self.used = dict.fromkeys(self.banks, 0)
        self.next = {tag: base for tag, (base, _) in self.banks.items()}
        self.loaded = self.fabric = None
        self.memories = []  # (tags, address, bytes), of all buffers
        self.gone, self.before_start = False, lambda card: None
        self.starts = 0

    def check(self):
        if self.gone:
            raise RuntimeError("No such device")
        order = Path(os.environ.get(RESET_FOLDER, "/nowhere"), self.bdf)
        if order.exists():
            order.unlink()
            self.loaded = self.fabric = None

    def load(self, image):
        self.check()
        if self.loaded == image.uuid:
            return
        self.loaded, self.image = image.uuid, image
        self.fabric = Fabric(image.arch)
        self.memories = [entry for entry in self.memories if entry[2]() is not None]
        for tags, address, memory in self.memories:
            self.attach(tags, address, memory())

    def attach(self, tags, address, memory):
        for bus, behind in self.image.memory.items():
            if set(tags) & set(_tags(behind)):
                self.fabric.attach(bus, address, memory)


CARDS = [Card()]


def _tags(memory):
    name, first, last = re.fullmatch(r"(\w+)\[(\d+)(?::(\d+))?\]", memory).groups()
    return [f"{name}[{at}]" for at in range(int(first), int(last or first) + 1)]


class ert_cmd_state(enum.Enum):
    ERT_CMD_STATE_NEW = 1
    ERT_CMD_STATE_COMPLETED = 4
    ERT_CMD_STATE_ERROR = 5
    ERT_CMD_STATE_ABORT = 6
    ERT_CMD_STATE_TIMEOUT = 8


class xclBOSyncDirection(enum.Enum):
    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1


class xrt_info_device(enum.Enum):
    bdf = 0
    name = 1
    electrical = 2
    thermal = 3
    platform = 4


def enumerate_devices():
    return len(CARDS)


class xclbin:
    class _Mem:
        def __init__(self, index, tag, base, size):
            self._values = index, tag, base, size

        def get_index(self):
            return self._values[0]

        def get_tag(self):
            return self._values[1]

        def get_base_address(self):
            return self._values[2]

        def get_size_kb(self):
            return self._values[3] >> 10

        def get_used(self):
            return True

    def __init__(self, path):
        data = Path(path).read_bytes()
        try:
            found = parse(data)
        except ValueError:
            raise RuntimeError("Invalid xclbin\nbad magic or length") from None
        self.uuid = hashlib.sha256(data).hexdigest()[:32]
        self.arch, self.memory = found["arch"], found["memory"]
        self.kernel = ElementTree.fromstring(found["kernel"].split("?>\n", 1)[1])

    def get_uuid(self):
        return self.uuid

    def get_mems(self):
        return [self._Mem(at, tag, *place)
                for at, (tag, place) in enumerate(CARDS[0].banks.items())]


class device:
    def __init__(self, index):
        if not 0 <= index < len(CARDS):
            raise RuntimeError(f"Could not open device with index '{index}'")
        self.card = CARDS[index]
        self.card.check()
        self.registered = {}

    def get_info(self, key):
        self.card.check()
        return {"bdf": self.card.bdf, "name": self.card.platform,
                "electrical": json.dumps({"power_consumption_watts": "23.5"}),
                "thermal": json.dumps({"thermals": [{"location_id": "fpga0", "temp_C": "41"}]}),
                "platform": json.dumps({"platforms": [{"clocks": {"clocks": [
                    {"id": "DATA_CLK", "freq_mhz": "225"}]}}]})}[key.name]

    def register_xclbin(self, image):
        self.card.check()
        self.registered[image.get_uuid()] = image
        return image.get_uuid()

    def load_xclbin(self, image):
        if "hw_context" in globals():
            warnings.warn("load_xclbin is deprecated", DeprecationWarning, stacklevel=2)
        self.card.load(image)
        self.registered[image.get_uuid()] = image
        return image.get_uuid()


class hw_context:
    def __init__(self, device, uuid):
        self.device = device
        device.card.load(device.registered[uuid])


class kernel:
    exclusive, shared = 0, 1

    def __init__(self, *form):
        if len(form) == 2:
            context, name = form
            self.card = context.device.card
        else:
            device, uuid, name, *_ = form
            self.card = device.card
            assert self.card.loaded == uuid
        described = self.card.image.kernel.find(f"kernel[@name='{name}']")
        if described is None:
            raise RuntimeError(f"No kernel named {name}")
        self.args = [(int(arg.get("offset"), 16), int(arg.get("size"), 16),
                      arg.get("addressQualifier") == "1", arg.get("port"))
                     for arg in described.iter("arg")]

    def group_id(self, at):
        """Return a number; here, of the port whose memory it is."""
        assert self.args[at][2], "on a scalar this crashed older versions"
        return at

    def __call__(self, *values):
        started = run(self)
        for at, value in enumerate(values):
            for form in (bo, int):
                if isinstance(value, form):
                    with suppress(TypeError):
                        started.set_arg(at, value)
        started.start()
        return started


class bo:
    normal, cacheable, device_only = 0, 1, 2

    def __init__(self, device, size, flags, group):
        card = self.card = device.card
        card.check()
        tags = _tags(card.image.memory[_group_bus(card, group)])
        room = sum(card.banks[tag][1] - card.used[tag] for tag in tags)
        whole = -(-size // 4096) * 4096
        if whole > room:
            raise RuntimeError("failed to allocate buffer\nCannot allocate memory")
        self._address = card.next[tags[0]]
        card.next[tags[0]] += whole
        left = whole
        for tag in tags:
            part = min(left, card.banks[tag][1] - card.used[tag])
            card.used[tag] += part
            left -= part
        weakref.finalize(self, _free, card, tags, whole)
        self.host, self.card_bytes = rubbish(size, 1), rubbish(whole, 2)
        card.memories.append((tags, self._address, weakref.ref(self.card_bytes)))
        card.attach(tags, self._address, self.card_bytes)

    def write(self, data, seek):
        raw = np.frombuffer(data, np.uint8)
        if seek + raw.size > self.host.size:
            raise RuntimeError("attempting to write past buffer size")
        self.host[seek:seek + raw.size] = raw

    def read(self, size, skip):
        if skip + size > self.host.size:
            raise RuntimeError("attempting to read past buffer size")
        return self.host[skip:skip + size].copy().view(np.int8)

    def sync(self, direction, size=None, offset=0):
        self.card.check()
        place = slice(offset, offset + (self.host.size if size is None else size))
        if direction is xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE:
            self.card_bytes[:self.host.size][place] = self.host[place]
        else:
            self.host[place] = self.card_bytes[:self.host.size][place]

    def size(self):
        return self.host.size

    def address(self):
        return self._address


def _group_bus(card, group):
    ports = [arg.get("port") for arg in card.image.kernel.iter("arg")]
    return ports[group]


def _free(card, tags, size):
    for tag in reversed(tags):
        part = min(size, card.used[tag])
        card.used[tag] -= part
        size -= part


class run:
    def __init__(self, kernel):
        self.kernel, self.card = kernel, kernel.card
        self.values = [None] * len(kernel.args)
        self._state = ert_cmd_state.ERT_CMD_STATE_NEW

    def set_arg(self, at, value):
        pointer = self.kernel.args[at][2]
        if isinstance(value, bo):
            self.values[at] = value
            return
        try:
            number = operator.index(value)
        except TypeError:
            number = None
        if number is None or not -(1 << 31) <= number < 1 << 31:
            raise TypeError("set_arg(): incompatible function arguments")
        assert not pointer, "an address cannot be given as a number of 32 bits"
        self.values[at] = number

    def start(self):
        self.card.check()
        self.card.starts += 1
        rtl = self.card.fabric.rtl
        for (offset, size, _, _), value in zip(self.kernel.args, self.values, strict=True):
            number = value.address() if isinstance(value, bo) else (value or 0)  # unset: nothing
            for at in range(0, size, 4):
                rtl.write_register(offset + at, number >> 8 * at & 0xFFFF_FFFF)
        rtl.write_register(Register.GIE, 1)
        rtl.write_register(Register.IER, 1)
        self.card.before_start(self.card)
        rtl.write_register(Register.CTRL, 1 << Ctrl.START)

    def wait(self, timeout_ms=0):
        assert timeout_ms > 0, "a wait without an end: a test would hang"
        if self.card.gone:
            return ert_cmd_state.ERT_CMD_STATE_ABORT
        rtl = self.card.fabric.rtl
        if not self.card.fabric.run(timeout_ms * self.card.clocks_per_ms):
            return ert_cmd_state.ERT_CMD_STATE_TIMEOUT
        rtl.write_register(Register.ISR, 1)
        rtl.write_register(Register.CTRL, 1 << Ctrl.CONTINUE)
        return ert_cmd_state.ERT_CMD_STATE_COMPLETED
