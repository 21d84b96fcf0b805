"""Round weights to int4 as ONNX Runtime's symmetric block quantizer does; choose what to prune.

A block is 32 consecutive inputs of one row. Its scale is its element of largest magnitude, sign
included, over -8, rounded to fp16; its codes are the weights over the scale, rounded and held in
-8..7. The extreme element therefore always gets code -8, so whoever quantizes the rounded weights
again finds the same scales and the same codes.
"""

from enum import StrEnum

import torch
from torch import Tensor

BLOCK = 32
GROUP = 16
SMALLEST_SCALE = 2.0 ** -20     # below it fp16 is too coarse to keep the extreme at code -8


class Pattern(StrEnum):
    """Which half of a weight is dropped."""

    N_OF_M = "8:16"             # 8 of each 16 consecutive inputs of a row
    DROP = "drop"               # half of a matrix's blocks of 32 inputs of a row


def scales_and_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a (rows, inputs) weight.

    Returns
    -------
    scales: (rows, blocks, 1) float32, each exact in fp16; 0 where the block is all zero.
    codes: (rows, blocks, 32) float32 integers in -8..7.
    """
    blocks = weight.unflatten(-1, (-1, BLOCK))
    high, low = blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    scales = (extreme / -8).half().float()
    scales = torch.where(scales.abs() < SMALLEST_SCALE, 0.0, scales)
    inverse = torch.where(scales == 0, 0.0, 1 / torch.where(scales == 0, 1.0, scales))
    return scales, (blocks * inverse).round().clamp(-8, 7)


def fake_quantize(weight: Tensor) -> Tensor:
    """Return the weight as int4 holds it; the gradient passes straight through.

    Without gradients the result is codes times scales to the last bit.
    """
    with torch.no_grad():
        scales, codes = scales_and_codes(weight.float())
        rounded = (scales * codes).flatten(-2)
    return weight + (rounded - weight).detach() if torch.is_grad_enabled() else rounded


def keep_mask(score: Tensor, pattern: Pattern, kept: float) -> Tensor:
    """Return 1 where a (rows, inputs) score is among the best share `kept` of its group, else 0."""
    if pattern is Pattern.N_OF_M:
        return _best(score.unflatten(-1, (-1, GROUP)), round(kept * GROUP)).flatten(-2)
    blocks = score.unflatten(-1, (-1, BLOCK)).square().sum(-1)
    best = _best(blocks.flatten(), round(kept * blocks.numel())).view_as(blocks)
    return best.repeat_interleave(BLOCK, dim=-1)


def _best(score: Tensor, count: int) -> Tensor:
    chosen = score.topk(count, dim=-1).indices
    return torch.zeros_like(score).scatter_(-1, chosen, 1.0)
