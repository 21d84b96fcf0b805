"""Define the small Llama-style model that is trained.

Q, K and V share one matrix, and so do gate and up: fewer and larger products train faster. The rest
is the usual Llama, so the weights, split again, load into Hugging Face's `LlamaForCausalLM`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alula.host.bundled.quantize import fake_quantize


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Describe a model; `vocab` must be no layer's width, or the builder takes it for the head."""

    hidden: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 512
    vocab: int = 2048
    positions: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-5


class Linear(nn.Module):
    """Multiply by a (out, in) weight that can be pruned by `mask` and rounded to int4 on the fly.

    Both are straight-through: the gradient reaches every weight as if neither was there.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs ** -0.5)
        self.register_buffer("mask", torch.ones(outputs, inputs))
        self.is_masked = False
        self.is_quantized = False

    def effective_weight(self) -> Tensor:
        """Return the weight the product uses, which is what gets exported."""
        weight = self.weight
        if self.is_masked:
            weight = weight + (weight * self.mask - weight).detach()
        return fake_quantize(weight) if self.is_quantized else weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight())


class Block(nn.Module):
    """A transformer layer: attention and a gated feed-forward, each with a norm and a residual."""

    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.sizes, self.dropout = sizes, dropout
        rows = sizes.heads * sizes.head_dim
        self.attention_norm = nn.RMSNorm(sizes.hidden, sizes.eps)
        self.qkv = Linear(sizes.hidden, rows + 2 * sizes.kv_heads * sizes.head_dim)
        self.out = Linear(rows, sizes.hidden)
        self.ffn_norm = nn.RMSNorm(sizes.hidden, sizes.eps)
        self.gate_up = Linear(sizes.hidden, 2 * sizes.ffn)
        self.down = Linear(sizes.ffn, sizes.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self._drop(self._attention(self.attention_norm(x), cos, sin))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self._drop(self.down(F.silu(gate) * up))

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s = self.sizes
        qkv = self.qkv(x).unflatten(-1, (s.heads + 2 * s.kv_heads, s.head_dim)).transpose(1, 2)
        q, k, v = qkv.split((s.heads, s.kv_heads, s.kv_heads), dim=1)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Llama(nn.Module):
    """The whole model; its head is the embedding table, in int4 once the model is quantized."""

    def __init__(self, sizes: Sizes, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Parameter(torch.randn(sizes.vocab, sizes.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(sizes, dropout) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden, sizes.eps)
        self.is_quantized = False
        for block in self.blocks:
            for residual in (block.out, block.down):
                nn.init.zeros_(residual.weight)
        angles = torch.outer(torch.arange(sizes.positions).float(), _frequencies(sizes))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (batch, length, vocab) for tokens (batch, length)."""
        length = tokens.shape[1]
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.head())

    def head(self) -> Tensor:
        """Return the (vocab, hidden) matrix that makes the logits."""
        return fake_quantize(self.embedding) if self.is_quantized else self.embedding

    def linears(self) -> dict[str, Linear]:
        """Return the blocks' linear layers by name."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Linear)}

    def quantize(self) -> None:
        """Round all linear layers and the head to int4 from now on."""
        self.is_quantized = True
        for linear in self.linears().values():
            linear.is_quantized = True


def _frequencies(sizes: Sizes) -> Tensor:
    return sizes.rope_theta ** -(torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
