"""What to do about operators that have no lowering."""

from __future__ import annotations

_NORM = "only RMS norms are lowered for now: choose a Llama, Mistral, Qwen2 or Qwen3 model"
_EXPERTS = "mixtures of experts are not lowered: choose a dense model"
_DYNAMIC = "quantize weights only (MatMulNBits or DequantizeLinear); Alula quantizes activations"
_FLOW = "export with torch.onnx.export(dynamo=True), which traces one path"
_FUSED = "export with fuse_mlp_gate_up=false and fuse_qkv=false, without graph optimization"
_STATIC = "export with growing past_key_values inputs instead of a static cache"

REMEDIES = {
    "PagedAttention": "re-export with use_paged_attention=false",
    "SparseAttention": "re-export with GroupQueryAttention or dense attention",
    "LinearAttention": "only softmax attention is lowered",
    "MoE": _EXPERTS, "QMoE": _EXPERTS,
    "LayerNormalization": _NORM, "SkipLayerNormalization": _NORM,
    "EmbedLayerNormalization": _NORM, "GroupNorm": _NORM, "BatchNormalization": _NORM,
    "DynamicQuantizeLinear": _DYNAMIC, "QuantizeLinear": _DYNAMIC, "QLinearMatMul": _DYNAMIC,
    "MatMulInteger": _DYNAMIC, "MatMulIntegerToFloat": _DYNAMIC,
    "DynamicQuantizeMatMul": _DYNAMIC,
    "MatMulBnb4": "quantize with MatMulNBits instead (NF4 codes have no zero point)",
    "MatMulNBitsMlp": _FUSED, "MatMulNBitsQkv": _FUSED, "MatMulNBitsSwiGLU": _FUSED,
    "If": _FLOW, "Loop": _FLOW, "Scan": _FLOW,
    "TensorScatter": _STATIC, "ScatterElements": _STATIC,
    "LoraMatMul": "merge the adapter into the weights before export",
}
OTHERWISE = ("export with the ONNX Runtime GenAI builder (python -m "
             "onnxruntime_genai.models.builder) or torch.onnx.export(dynamo=True, "
             "opset_version=23); write model-local functions out with onnx.inliner")
