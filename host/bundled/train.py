"""Train the bundled model: dense, then int4, then int4 with half of the weights dropped.

    python -m alula.host.bundled.train

runs every phase, exports both int4 models beside this file and writes `metrics.json` and the
validation text. A phase whose checkpoint is in `--runs` is not trained again, one that was
interrupted goes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from alula.host.bundled.corpus import END, Corpus, collect
from alula.host.bundled.export import export
from alula.host.bundled.fit import SEED, BeforeStep, Fit, Loss, Phase, cross_entropy, windows
from alula.host.bundled.model import Llama, Sizes
from alula.host.bundled.quantize import Pattern, keep_mask
from alula.host.bundled.report import write_metrics

HERE = Path(__file__).parent
PHASES = ("dense", "int4", "sparse")
DROPOUT = 0.1               # in both long phases; the text is seen many times over
STEP_TOKENS = 2048
DENSE_LENGTH = 256          # tokens the dense phase sees at once
LENGTH = 512                # tokens the other phases see at once
CALIBRATION_WINDOWS = 64
MASK_STEPS = 20             # steps between two choices of what to drop
PRUNED_AT = 0.25            # share of the sparse phase after which half of the weights is gone
FROZEN_AT = 0.65            # share after which the choice no longer changes

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Material:
    """Hold what every phase needs: both texts as tokens, and the folder of checkpoints."""

    train: Tensor
    validation: Tensor
    runs: Path


@app.command()
def main(
    runs: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder the exported models go to.")] = HERE,
    dense_minutes: Annotated[float, typer.Option(help="Time of the fp32 phase.")] = 42,
    int4_minutes: Annotated[float, typer.Option(help="Time of the dense int4 phase.")] = 5,
    sparse_minutes: Annotated[float, typer.Option(help="Time of the sparse int4 phase.")] = 21,
    pattern: Annotated[Pattern, typer.Option(help="What is dropped.")] = Pattern.N_OF_M,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 2,
) -> None:
    """Train the dense model and both compressed ones, and export them."""
    torch.set_num_threads(threads)
    runs.mkdir(parents=True, exist_ok=True)
    corpus = collect()
    tokenizer = make_tokenizer(corpus, runs / "tokenizer.json")
    train, validation = (torch.tensor(tokenizer.encode(text).ids)
                         for text in (corpus.train_text, corpus.validation_text))
    material = Material(train=train, validation=validation, runs=runs)
    print(f"{len(train)} training tokens, {len(validation)} validation tokens")

    dense = train_dense(_phase("dense", dense_minutes, 3e-3, DENSE_LENGTH), material)
    int4 = train_int4(dense, _phase("int4", int4_minutes, 5e-4, LENGTH), material)
    sparse = train_sparse(dense, _phase("sparse", sparse_minutes, 2e-3, LENGTH), pattern,
                          material)

    export(int4, tokenizer, out / "dense")
    export(sparse, tokenizer, out / "sparse")
    (out / "validation.txt").write_text(corpus.validation_text, encoding="utf-8")
    records = {name: torch.load(runs / f"{name}.pt")["record"] for name in PHASES}
    write_metrics(out, corpus, tokenizer, records,
                  {"dense_fp32": dense, "dense_int4": int4, "sparse_int4": sparse}, pattern)


def make_tokenizer(corpus: Corpus, path: Path) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the training text, or read the one at `path`."""
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(corpus.train, trainers.BpeTrainer(
            vocab_size=Sizes().vocab, special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def train_dense(phase: Phase, material: Material) -> Llama:
    """Return the fp32 model, trained from random weights."""
    torch.manual_seed(SEED)
    model = Llama(Sizes(), DROPOUT)

    def loss(tokens: Tensor) -> Tensor:
        return cross_entropy(model(tokens[:, :-1]), tokens)

    return _trained(model, loss, phase, material)


def train_int4(dense: Llama, phase: Phase, material: Material) -> Llama:
    """Return the dense model trained on with its weights rounded to int4."""
    model = copy_of(dense)
    model.quantize()
    return _trained(model, distillation(model, dense), phase, material)


def train_sparse(dense: Llama, phase: Phase, pattern: Pattern, material: Material) -> Llama:
    """Return the dense model trained on in int4 with half of its layers' weights dropped.

    The share kept falls from all to half over the first part of the phase, by Wanda's score: a
    weight's magnitude times the norm of its input. For a while what is dropped is chosen anew every
    few steps, from weights that go on learning while they are dropped; then the choice stays.
    """
    calibration = next(windows(material.train, phase.length, CALIBRATION_WINDOWS, SEED))
    norms = input_norms(dense, calibration)
    model = copy_of(dense, DROPOUT)
    model.quantize()
    for linear in model.linears().values():
        linear.is_masked = True

    def choose(step: int, progress: float) -> bool:
        if step % MASK_STEPS == 0 and progress < FROZEN_AT:
            kept = 1 - 0.5 * min(progress / PRUNED_AT, 1)
            for name, linear in model.linears().items():
                score = linear.weight.detach().abs() * norms[name]
                linear.mask.copy_(keep_mask(score, pattern, kept))
        return progress >= FROZEN_AT

    return _trained(model, distillation(model, dense), phase, material, choose)


def distillation(model: Llama, teacher: Llama) -> Loss:
    """Return a loss that is half cross entropy and half divergence from the teacher.

    The teacher reads windows of the length it was trained with: at later positions it is no guide.
    """

    def loss(tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1])
        with torch.no_grad():
            target = teacher(tokens[:, :-1].reshape(-1, DENSE_LENGTH))
            target = target.flatten(0, 1).float().log_softmax(-1)
        divergence = F.kl_div(logits.flatten(0, 1).float().log_softmax(-1), target,
                              log_target=True, reduction="batchmean")
        return 0.5 * cross_entropy(logits, tokens) + 0.5 * divergence

    return loss


@torch.no_grad()
def input_norms(model: Llama, tokens: Tensor) -> dict[str, Tensor]:
    """Return, for each linear layer, the root mean square of each of its inputs over `tokens`."""
    norms: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        norms[name] = x.flatten(0, -2).square().mean(0).sqrt()

    hooks = [linear.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
             for name, linear in model.linears().items()]
    model(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    return norms


def copy_of(model: Llama, dropout: float = 0.0) -> Llama:
    """Return a model of its own with the same weights."""
    twin = Llama(model.sizes, dropout)
    twin.load_state_dict(model.state_dict())
    return twin


def _phase(name: str, minutes: float, learning_rate: float, length: int) -> Phase:
    return Phase(name=name, minutes=minutes, learning_rate=learning_rate, length=length,
                 batch=STEP_TOKENS // length)


def _trained(model: Llama, loss: Loss, phase: Phase, material: Material,
             before_step: BeforeStep = lambda step, progress: True) -> Llama:
    """Fit the model unless an earlier run has; return it ready for use, without dropout."""
    path = material.runs / f"{phase.name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path)["model"])
    else:
        Fit(model, phase, path).run(loss, material.train, material.validation, before_step)
    return model.eval()


if __name__ == "__main__":
    app()
