"""Write `metrics.json`: what was trained, on what, for how long, and what came out."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from alula.host.bundled import fit, measure
from alula.host.bundled.corpus import END, Corpus
from alula.host.bundled.export import quantized_weights
from alula.host.bundled.model import Llama
from alula.host.bundled.quantize import BLOCK, GROUP, Pattern

LONG = 512                  # tokens a window, of a second evaluation


def write_metrics(out: Path, corpus: Corpus, tokenizer: Tokenizer, phases: Mapping[str, dict],
                  models: Mapping[str, Llama], pattern: Pattern) -> None:
    """Measure the exported models in `out` beside the fp32 one, and write `out`/metrics.json.

    `phases` holds the figures of each phase: seconds, steps, tokens, best, curve; `models` the
    models in torch: dense_fp32, dense_int4, sparse_int4.
    """
    text = corpus.validation_text
    tokens = np.array(tokenizer.encode(text).ids)

    def quality(loss: float) -> dict[str, float]:
        return {"loss": round(loss, 4), "perplexity": round(float(np.exp(loss)), 3),
                "bits_per_byte": round(measure.bits_per_byte(loss, len(tokens) - 1, text), 4)}

    dense = models["dense_fp32"]
    reference = fit.evaluate(dense, torch.from_numpy(tokens))
    figures: dict[str, object] = {
        "sizes": vars(dense.sizes),
        "parameters": sum(p.numel() for p in dense.parameters()),
        "seed": fit.SEED,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "corpus": corpus_figures(corpus, tokenizer),
        "evaluation": f"validation.txt, windows of {fit.EVAL_LENGTH} or {LONG} tokens, no overlap",
        "phases": phases,
        "dense_fp32": {"runtime": "torch fp32"} | quality(reference) | {
            f"loss_at_{LONG}": round(fit.evaluate(dense, torch.from_numpy(tokens), LONG), 4)},
    }
    for name in ("dense", "sparse"):
        loss = measure.evaluate(out / name, tokens)
        figures[f"{name}_int4"] = {"runtime": "ONNX Runtime"} | quality(loss) | {
            f"loss_at_{LONG}": round(measure.evaluate(out / name, tokens, LONG), 4),
            "loss_over_fp32_percent": round(100 * (loss / reference - 1), 2),
            "loss_in_torch_fp32": round(
                fit.evaluate(models[f"{name}_int4"], torch.from_numpy(tokens)), 4),
            "file_bytes": {f.name: f.stat().st_size for f in sorted((out / name).iterdir())},
            "samples": measure.samples(out / name, tokenizer)}
    figures["sparsity"] = sparsity_figures(out / "sparse", pattern)
    (out / "metrics.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n",
                                      encoding="utf-8")


def corpus_figures(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """Return documents, bytes (document ends left out) and tokens of both texts."""
    texts = {"train": corpus.train_text, "validation": corpus.validation_text}
    return {name: {"documents": text.count(END), "bytes": len(text.replace(END, "").encode()),
                   "tokens": len(tokenizer.encode(text).ids)} for name, text in texts.items()}


def sparsity_figures(folder: Path, pattern: Pattern) -> dict[str, object]:
    """Return what share of the layers' weights the file keeps; a kept one can still round to 0."""
    weights = quantized_weights(folder / "model.onnx")
    codes = [codes for name, (_, codes) in weights.items() if name != "lm_head"]
    total = sum(c.size for c in codes)
    return {"pattern": str(pattern), "group": GROUP if pattern is Pattern.N_OF_M else BLOCK,
            "share_kept": 0.5, "weights": total, "head": "dense",
            "share_of_nonzero_codes": round(sum(int((c != 0).sum()) for c in codes) / total, 4)}
