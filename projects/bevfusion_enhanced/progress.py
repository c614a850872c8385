"""Progress bars: rich on a terminal, silent elsewhere."""
from typing import Iterable, Iterator, Optional, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar('T')


def progress_bar() -> Progress:
    """A rich progress bar on standard error, disabled where that is not a terminal."""
    console = Console(stderr=True)
    return Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
                    TimeElapsedColumn(), TimeRemainingColumn(), TextColumn('{task.fields[note]}'),
                    console=console, disable=not console.is_terminal)


def track(items: Iterable[T], *, description: str, total: Optional[int] = None) -> Iterator[T]:
    """Yield `items` while a bar shows how far the loop is.

    Args:
        items: What is looped over.
        description: The text before the bar.
        total: Number of items, where `items` has no length.
    """
    if total is None and hasattr(items, '__len__'):
        total = len(items)
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, note='')
        for item in items:
            yield item
            bar.advance(task)
