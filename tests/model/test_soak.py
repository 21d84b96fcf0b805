"""A small soak; ALULA_SOAK=1000 makes it a long one, with memory watched too."""

import os

import pytest
from bench.soak import GROWTH, soak

REQUESTS = int(os.environ.get("ALULA_SOAK", "20"))
LONG = 500  # requests from which on memory has settled


@pytest.mark.parametrize("device", ["auto" if REQUESTS >= LONG else "golden"])
def test_each_text_is_as_if_alone(device):
    found = soak(REQUESTS, device)
    assert found["requests"] == REQUESTS and found["cancelled"] and not found["wrong"]
    assert found["pages_held"] == {"dense": 0, "sparse": 0}
    if REQUESTS >= LONG:
        assert found["growth"] <= GROWTH
