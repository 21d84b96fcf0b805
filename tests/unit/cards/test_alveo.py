"""The driver for Alveo, over a stand-in for XRT whose card is the simulated hardware."""

from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from standins import bundles
from standins.bundles import pyxrt  # noqa: F401  (a fixture)

import alula
from alula.host.cards import alveo
from alula.host.cards.card import Limit
from alula.host.cards.place import Place
from alula.hw.arch import SIM

SPARSE = Path(str(files("alula.host.bundled"))) / "sparse"


@pytest.fixture(scope="module")
def program():
    return alula.compile(SPARSE, context=256, sequences=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return bundles.write("u55c", SIM, tmp_path / "bundle", monkeypatch)


PARAMS = alula.SamplingParams(max_tokens=6)


def tokens(program, device):
    with alula.LLM(program, device=device) as llm:
        return llm.device, [result.outputs[0].token_ids for result in
                            llm.generate(["The", "Note that it"], PARAMS)]


def test_tokens(program, folder, pyxrt):  # noqa: F811
    import time
    t = time.time()
    card = tokens(program, f"alveo:0@{folder}")
    print(time.time() - t, pyxrt.CARDS[0].starts, pyxrt.CARDS[0].fabric.rtl.clocks)
    assert card == ("alveo:0", tokens(program, "golden")[1])
