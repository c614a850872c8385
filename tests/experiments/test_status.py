"""What a run's folder says about it, and who may train in it."""
import json
import multiprocessing
import os
import signal

import pytest

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.experiments.run_files import RunFiles
from bevfusion_enhanced.experiments.status import (
    FAILED,
    FINISHED,
    KILLED,
    RUNNING,
    is_locked,
    locked,
    read_status,
    starting,
    write_status,
)


def train_forever(folder, ready):
    files = RunFiles(folder)
    with locked(files):
        write_status(files, starting(max_epochs=5))
        ready.set()
        signal.pause()


@pytest.fixture
def training(tmp_path):
    """A process that holds `tmp_path / 'run'`."""
    context = multiprocessing.get_context('fork')
    ready = context.Event()
    process = context.Process(target=train_forever, args=(tmp_path / 'run', ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_what_is_written_comes_back(tmp_path):
    files = RunFiles(tmp_path)
    written = write_status(files, starting(max_epochs=5).__class__(
        state=FINISHED, epoch=5, max_epochs=5))
    assert read_status(files) == written and written.updated


def test_a_folder_is_one_trainings_and_a_killed_one_is_seen(tmp_path, training):
    files = RunFiles(tmp_path / 'run')
    assert read_status(files).state == RUNNING and is_locked(files)
    with pytest.raises(ConfigError, match=f'process {training.pid} on'), locked(files):
        pass
    os.kill(training.pid, signal.SIGKILL)
    training.join()
    status = read_status(files)
    assert status.state == KILLED and 'after epoch 0 of 5' in status.reason
    with locked(files):  # the lock went with the process
        assert is_locked(files)
    assert not is_locked(files)


@pytest.mark.parametrize('content', ['', '{', '[]', json.dumps({'epoch': 1})])
def test_a_damaged_status_is_a_failure_not_an_exception(tmp_path, content):
    files = RunFiles(tmp_path)
    files.status.write_text(content)
    assert read_status(files).state == FAILED


def test_a_record_of_another_version_is_read_as_far_as_known(tmp_path):
    files = RunFiles(tmp_path)
    files.status.write_text(json.dumps(dict(state=FINISHED, epoch=2, invented_later=1)))
    assert read_status(files).epoch == 2
