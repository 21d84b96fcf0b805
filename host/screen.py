"""What a person sees: steps with bars and time left, tables, and where the log is."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LOG = logging.getLogger("alula")
LOG.addHandler(logging.NullHandler())  # until a command opens its log file
LOG.propagate = False


def log_path() -> Path:
    """Return the log file, its folder made; on a disk that cannot be written, a null file."""
    path = Path(platformdirs.user_log_dir("alula", appauthor=False)) / "alula.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError:
        return Path("/dev/null")
    return path


class Screen:
    """Output of one command.

    Parameters
    ----------
    as_json
        Print one JSON object at the end, and nothing else, to standard output.
    quiet
        Show no progress.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out = Console(soft_wrap=True, highlight=False)
        self.err = Console(stderr=True, highlight=False)
        self.log = log_path()
        handler = logging.FileHandler(self.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.handlers[:] = [handler]
        LOG.setLevel(logging.INFO)
        LOG.info("alula %s", " ".join(sys.argv[1:]))

    @contextmanager
    def steps(self, total: int) -> Iterator[Steps]:
        """Show ``total`` steps, one bar each, on standard error."""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30),
                   TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"),
                   TimeRemainingColumn())
        hidden = self.quiet or not self.err.is_terminal
        if not self.quiet:
            self.err.print(f"log: {self.log}", markup=False)
        with Progress(*columns, console=self.err, disable=hidden) as progress:
            yield Steps(self, progress, total, plain=hidden and not self.quiet)

    def text(self, text: str) -> None:
        """Print a piece of generated text at once, unless the result is JSON."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell a person something that is not part of the result."""
        LOG.info("%s", text)
        if not self.quiet:
            self.err.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", show_header=any(columns))
        for at, column in enumerate(columns):
            table.add_column(column, justify="left" if at == 0 else "right")
        for row in rows:
            table.add_row(*map(str, row))
        self.out.print(table)

    def result(self, facts: dict[str, Any]) -> None:
        """Print the JSON object, if that is wanted."""
        if self.as_json:
            sys.stdout.write(json.dumps(facts, indent=2, default=float) + "\n")


class Steps:
    """Numbered steps of a command, the last one begun being the one at work."""

    def __init__(self, screen: Screen, progress: Progress, total: int, *, plain: bool) -> None:
        self.screen, self.progress, self.total, self.plain = screen, progress, total, plain
        self.number = 0
        self.task: Any = None

    def begin(self, name: str, amount: float = 0) -> Any:
        """Begin the next step; return what advances its bar by an amount."""
        self.finish()
        self.number += 1
        title = f"[{self.number}/{self.total}] {name}"
        LOG.info("%s", title)
        if self.plain:
            self.screen.err.print(title, markup=False)
        self.task = self.progress.add_task(title.replace("[", r"\["), total=amount or None)

        def advance(made: float) -> None:
            self.progress.update(self.task, advance=made)
        return advance

    def finish(self) -> None:
        """Fill the bar of the step at work."""
        if self.task is not None:
            total = self.progress.tasks[self.task].total or 1
            self.progress.update(self.task, total=total, completed=total)
