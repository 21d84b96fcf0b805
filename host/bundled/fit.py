"""Train one phase for some minutes, keeping the weights with the lowest validation loss.

A phase is bounded by time, and its schedules (learning rate, sparsity) follow the share of the time
that has passed. Its whole state is written every two minutes; started again, it goes on from there.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from alula.host.bundled.model import Llama

EVAL_LENGTH = 256
EVAL_WINDOWS = 8            # evaluated at once
EVAL_SECONDS = 60
SAVE_SECONDS = 120
WARMUP = 0.02               # share of a phase in which the learning rate rises; then it falls to 0
LOWEST_RATE = 1e-3          # share of the peak
WEIGHT_DECAY = 0.1
SMOOTHING = 0.98            # of the training loss that is shown
SEED = 20260101

Loss = Callable[[Tensor], Tensor]
"""A function of tokens (batch, length + 1); returns the loss to minimise."""

BeforeStep = Callable[[int, float], bool]
"""A function of step and progress that may change the model; says if weights may be kept yet."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Say how long and how hard to train; a step sees `batch` windows of `length` tokens."""

    name: str
    minutes: float
    learning_rate: float
    length: int = 256
    batch: int = 8


@dataclass(kw_only=True)
class Record:
    """Count what a phase did; `best` is the validation loss of the weights kept."""

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    best: float = float("inf")
    curve: list[tuple[float, float]] = field(default_factory=list)


class Fit:
    """A phase under way: the model, its optimizers, the record and the best weights so far."""

    def __init__(self, model: Llama, phase: Phase, path: Path) -> None:
        self.model, self.phase, self.path = model, phase, path
        self.optimizers = _optimizers(model, phase.learning_rate)
        self.record = Record()
        self.best = model.state_dict()
        self.smooth = 0.0
        self.state_path = path.with_suffix(".state")
        if self.state_path.exists():
            self._resume()

    def run(self, loss: Loss, train: Tensor, validation: Tensor, before_step: BeforeStep) -> None:
        """Train until the time is up; leave the best weights in the model and in `path`."""
        record, end_seconds = self.record, 60 * self.phase.minutes
        batches = windows(train, self.phase.length, self.phase.batch, SEED + record.steps)
        loss = torch.compile(loss, dynamic=False)
        last_eval = last_save = began = time.monotonic() - record.seconds
        with _progress_bar() as bar:
            task = bar.add_task(self.phase.name, total=end_seconds, figures="")
            while record.seconds < end_seconds:
                may_keep = before_step(record.steps, record.seconds / end_seconds)
                self._step(loss, next(batches), record.seconds / end_seconds)
                now = time.monotonic()
                record.seconds = now - began
                bar.update(task, completed=record.seconds, figures=f"loss {self.smooth:.3f}")
                if now - last_eval > EVAL_SECONDS or record.seconds >= end_seconds:
                    last_eval = now
                    bar.console.print(self._evaluate(validation, may_keep), soft_wrap=True)
                if now - last_save > SAVE_SECONDS:
                    last_save = now
                    self._save_state()
        self.model.load_state_dict(self.best)
        _save(self.path, model=self.best, record=asdict(record))
        self.state_path.unlink(missing_ok=True)

    def _step(self, loss: Loss, tokens: Tensor, progress: float) -> None:
        _set_learning_rate(self.optimizers, self.phase.learning_rate, progress)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(tokens)
        value.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        share = SMOOTHING if self.record.steps else 0.0
        self.smooth = share * self.smooth + (1 - share) * value.item()
        self.record.steps += 1
        self.record.tokens += self.phase.length * self.phase.batch

    def _evaluate(self, validation: Tensor, may_keep: bool) -> str:
        record = self.record
        measured = evaluate(self.model, validation)
        record.curve.append((round(record.seconds), round(measured, 4)))
        if may_keep and measured < record.best:
            record.best = measured
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return (f"{self.phase.name} {record.seconds / 60:.1f} min, step {record.steps}, "
                f"{record.tokens / record.seconds:.0f} tokens/s: loss {self.smooth:.3f}, "
                f"validation {measured:.4f}, best {record.best:.4f}")

    def _save_state(self) -> None:
        _save(self.state_path, model=self.model.state_dict(), best=self.best,
              record=asdict(self.record),
              optimizers=[optimizer.state_dict() for optimizer in self.optimizers])

    def _resume(self) -> None:
        state = torch.load(self.state_path)
        self.model.load_state_dict(state["model"])
        self.best, self.record = state["best"], Record(**state["record"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def windows(tokens: Tensor, length: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield (batch, length + 1) for ever; each pass cuts the text elsewhere, in another order."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(length + 1)
    while True:
        shift = int(torch.randint(length, (1,), generator=generator))
        count = (len(tokens) - shift - 1) // length
        starts = shift + length * torch.randperm(count, generator=generator)
        for group in starts[: count - count % batch].split(batch):
            yield tokens[group[:, None] + offsets]


@torch.no_grad()
def evaluate(model: Llama, tokens: Tensor, length: int = EVAL_LENGTH) -> float:
    """Return the mean loss in nats a token over separate windows of `length`."""
    was_training = model.training
    model.eval()
    whole = (len(tokens) - 1) // length * length
    inputs, targets = tokens[:-1], tokens[1:]
    rows = [*inputs[:whole].view(-1, length).split(EVAL_WINDOWS), inputs[None, whole:]]
    wanted = [*targets[:whole].split(EVAL_WINDOWS * length), targets[whole:]]
    total = sum(F.cross_entropy(model(x).flatten(0, 1), y, reduction="sum").item()
                for x, y in zip(rows, wanted, strict=True))
    model.train(was_training)
    return total / len(targets)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the loss of logits (batch, length, vocab) that predict tokens[:, 1:]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def _optimizers(model: Llama, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding table and the norms."""
    matrices = [linear.weight for linear in model.linears().values()]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [torch.optim.Muon(matrices, lr=learning_rate, weight_decay=WEIGHT_DECAY,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([{"params": [model.embedding], "weight_decay": WEIGHT_DECAY},
                               {"params": norms, "weight_decay": 0.0}],
                              lr=learning_rate, betas=(0.9, 0.98), fused=True)]


def _set_learning_rate(optimizers: list[torch.optim.Optimizer], peak: float,
                       progress: float) -> None:
    share = min(progress / WARMUP, (1 - progress) / (1 - WARMUP))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * max(share, LOWEST_RATE)


def _save(path: Path, **state: object) -> None:
    """Write to a neighbour and rename, so that a crash leaves the old file or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _progress_bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(),
                    TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
