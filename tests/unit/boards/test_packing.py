"""Which cells of a netlist share a place."""

import itertools

from alula.boards.packing import shared


def lut(inputs, output):
    ports = {f"I{at}": [net] for at, net in enumerate(inputs)}
    return {"type": f"LUT{len(inputs)}", "connections": {**ports, "O": [output]}}


def netlist(**cells):
    return {"cells": cells}


def shift_register(output, enable=90, address="0"):
    ports = {f"A{at}": [address] for at in range(4)}
    return {"type": "SRL16E", "connections": {**ports, "CE": [enable], "CLK": [91], "D": [92],
                                              "Q": [output]}}


def test_five_inputs_together():
    assert shared(netlist(a=lut([1, 2, 3], 10), b=lut([3, 4, 5], 11))) == {"a": 0.5, "b": 0.5}
    assert shared(netlist(a=lut([1, 2, 3], 10), b=lut([3, 4, 5, 6], 11))) == {}


def test_nothing_in_common_stays_apart():
    assert shared(netlist(a=lut([1, 2], 10), b=lut([3, 4], 11))) == {}


def test_constants_are_no_inputs():
    cells = netlist(a=lut([1, 2, 3, "0"], 10), b=lut([3, 4, 5], 11))
    assert shared(cells) == {"a": 0.5, "b": 0.5}


def test_six_inputs_take_a_place():
    assert shared(netlist(a=lut([1, 2, 3, 4, 5, 6], 10), b=lut([1, 2], 11))) == {}


def test_most_in_common_first():
    cells = netlist(a=lut([1, 2, 3, 4], 10), b=lut([4, 5], 11), c=lut([1, 2, 3, 4, 5], 12))
    assert shared(cells) == {"a": 0.5, "c": 0.5}


def test_carry_chains_and_multiplexers_keep_their_places():
    for kind, port in (("CARRY4", "S"), ("CARRY8", "S"), ("MUXF7", "I0"), ("MUXF7", "I1")):
        ports = {"S": [20], "I0": [21], "I1": [22]} | {port: [10]}
        behind = {"type": kind, "connections": ports}
        assert shared(netlist(a=lut([1, 2], 10), b=lut([1, 2], 11), behind=behind)) == {}


def test_shift_registers_of_one_address():
    alike = {name: shift_register(at) for at, name in zip(itertools.count(10), "abc", strict=False)}
    assert shared(netlist(**alike)) == {"a": 0.5, "b": 0.5}
    assert shared(netlist(a=shift_register(10), b=shift_register(11, enable=93))) == {}
    assert shared(netlist(a=shift_register(10), b=shift_register(11, address="1"))) == {}
