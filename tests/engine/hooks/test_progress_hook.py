"""The bar follows the run on a terminal, and leaves no trace elsewhere."""
import io
import logging
import sys

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from bevfusion_enhanced.engine.hooks import progress_hook
from bevfusion_enhanced.engine.hooks.progress_hook import RichProgressHook


class Screen(Progress):
    """A bar on a pretended terminal that remembers what it was told."""

    seen = []

    def update(self, task_id, **fields):
        super().update(task_id, **fields)
        task = self.tasks[-1]
        self.seen.append((task.description, task.completed, task.total, task.fields['note']))


@pytest.fixture
def screen(monkeypatch):
    Screen.seen = []
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress_hook, 'progress_bar', lambda: Screen(
        TextColumn('{task.description}'), console=console))
    return Screen


def test_bar_follows_the_training(run, screen):
    run('a')
    assert [entry[:3] for entry in screen.seen] == [('training', n, 4) for n in (1, 2, 3, 4)]
    assert screen.seen[0][3].startswith('epoch 1/2  loss ')
    assert screen.seen[-1][3].startswith('epoch 2/2  loss ')


def test_log_gets_its_stream_back(run, screen):
    stream = sys.stdout
    runner = run('a')
    handlers = [h for h in runner.logger.handlers if type(h) is logging.StreamHandler]
    assert handlers and all(handler.stream is stream for handler in handlers)


def test_nothing_is_drawn_without_a_terminal(run, capsys):
    run('a')
    assert 'training' not in capsys.readouterr().err


def test_closing_twice_is_harmless():
    hook = RichProgressHook()
    hook.close()
    hook.close()
