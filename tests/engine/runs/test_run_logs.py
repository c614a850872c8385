"""Logs of a run: cut to a checkpoint's length, and nothing of them thrown away."""
from pathlib import Path
from types import SimpleNamespace

import pytest

from bevfusion_enhanced.engine.runs import run_logs
from bevfusion_enhanced.engine.runs.run_local_backend import RunLocalVisBackend
from bevfusion_enhanced.engine.runs.run_tensorboard_backend import RunTensorboardVisBackend


@pytest.fixture
def begin(tmp_path):
    """Begin a run, or go on with it: begin(start) gives a runner with both backends."""
    def make(start):
        log_dir = tmp_path / start
        save_dir = str(log_dir / 'vis_data')
        backends = dict(local=RunLocalVisBackend(save_dir=save_dir),
                        events=RunTensorboardVisBackend(save_dir=save_dir))
        return SimpleNamespace(visualizer=SimpleNamespace(_vis_backends=backends), hooks=[],
                               log_dir=str(log_dir), work_dir=str(tmp_path))

    return make


def log(runner, *steps):
    for backend in runner.visualizer._vis_backends.values():
        for step in steps:
            backend.add_scalars(dict(loss=float(step)), step=step)


def logged(folder):
    """(steps in scalars.json, steps in the event files)."""
    import json

    from processes import events
    lines = (folder / 'scalars.json').read_text().splitlines()
    return [json.loads(line)['step'] for line in lines], [step for _, step, _ in events(folder)]


def test_events_after_the_checkpoint_are_cut_off_and_kept(begin, tmp_path):
    first = begin('1')
    log(first, 1, 2)
    lengths = run_logs.measure(first)
    log(first, 3, 4)
    run_logs.measure(first)  # flushes

    second = begin('2')
    assert run_logs.rewind(second, lengths, iteration=2) == ()
    log(second, 3)
    run_logs.measure(second)
    assert logged(tmp_path) == ([1, 2, 3], [1, 2, 3])
    assert len((tmp_path / '2/superseded/scalars.json').read_text().splitlines()) == 2

    third = begin('3')  # from the same checkpoint: the second start's events are void
    assert run_logs.rewind(third, lengths, iteration=2) == ()
    log(third, 3, 4)
    run_logs.measure(third)
    assert logged(tmp_path) == ([1, 2, 3, 4], [1, 2, 3, 4])


def test_start_without_a_checkpoint_sets_logs_aside(begin, tmp_path):
    first = begin('1')
    log(first, 1, 2)
    run_logs.measure(first)
    second = begin('2')
    run_logs.start_anew(second)
    log(second, 1)
    run_logs.measure(second)
    assert logged(tmp_path) == ([1], [1])
    assert (tmp_path / '2/superseded/scalars.json').read_text().count('\n') == 2
    assert not list((tmp_path / '2').rglob('*tfevents*'))  # a TensorBoard of the run skips them


def test_damaged_and_foreign_logs_are_told(begin, tmp_path):
    first = begin('1')
    log(first, 1, 2)
    lengths = run_logs.measure(first)
    scalars = tmp_path / 'scalars.json'
    whole = scalars.read_text()

    scalars.write_text(whole[:-5])
    notes = run_logs.rewind(begin('2'), lengths, iteration=2)
    assert [str(scalars) in note and 'shorter' in note for note in notes] == [True]
    assert scalars.read_text() == whole[:-5]

    scalars.write_text(whole.replace('2.0', '9.0') + whole)
    notes = run_logs.rewind(begin('3'), lengths, iteration=2)
    assert ['not what it was' in note for note in notes] == [True]
    assert not scalars.exists()
    assert '9.0' in (tmp_path / '3/superseded/scalars.json').read_text()


def test_log_dir_of_another_name_is_used_as_it_is(tmp_path):
    backend = RunLocalVisBackend(save_dir=str(tmp_path / 'here'))
    assert Path(backend._scalar_save_file) == tmp_path / 'here' / 'scalars.json'


def test_logs_of_another_run_stay(begin, tmp_path):
    runner = begin('1')
    log(runner, 1)
    runner.work_dir = str(tmp_path / 'other')  # a second run in one process, with one visualizer
    assert run_logs.measure(runner) == {}
    run_logs.start_anew(runner)
    assert run_logs.rewind(runner, {}, iteration=1) == ()
    assert logged(tmp_path) == ([1], [1])
