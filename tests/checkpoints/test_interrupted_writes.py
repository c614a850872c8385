"""Writes that fail or die at every single operation: what was there before stays good."""
import errno
import os
import resource
import signal
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from bevfusion_enhanced.checkpoints import durable
from bevfusion_enhanced.checkpoints.folder import find_newest
from bevfusion_enhanced.checkpoints.sidecar import read_sums, sidecar_of
from bevfusion_enhanced.checkpoints.storage import (
    read_checkpoint,
    verify_checkpoint,
    write_bytes,
    write_checkpoint,
)
from bevfusion_enhanced.errors import CheckpointError

OPERATIONS = ('open', 'write', 'fsync', 'close', 'replace', 'unlink')


class FaultyOs:
    """The os module as the writer sees it, whose operation number `fails_at` fails.

    'raises' leaves half of a write behind; 'dies' ends the process, after half of a write.
    """

    def __init__(self, fails_at, how):
        self.count, self.fails_at, self.how, self.seen = 0, fails_at, how, Counter()

    def __getattr__(self, name):
        function = getattr(os, name)
        return self.wrap(name, function) if name in OPERATIONS else function

    def wrap(self, name, function):
        def operation(*arguments):
            self.seen[name] += 1
            self.count += 1
            if self.count != self.fails_at:
                return function(*arguments)
            if name == 'write':
                function(arguments[0], bytes(arguments[1])[:len(arguments[1]) // 2])
            if self.how == 'dies':
                os._exit(9)
            raise OSError(errno.ENOSPC, 'No space left on device')

        return operation


def checkpoint(iteration):
    """Its weights are all equal to `iteration`."""
    weights = {'w': torch.full((2000,), float(iteration)), 'b': torch.ones(3)}
    return {'meta': {'iter': iteration, 'epoch': iteration}, 'state_dict': weights}


def a_new_file(folder):
    return folder / 'epoch_2.pth'


def one_with_sums(folder):
    write_checkpoint(checkpoint(2), folder / 'epoch_2.pth')
    return folder / 'epoch_2.pth'


def one_without_sums(folder):
    torch.save(checkpoint(2), folder / 'epoch_2.pth')
    return folder / 'epoch_2.pth'


def one_with_sums_of_another(folder):
    write_checkpoint(checkpoint(7), folder / 'epoch_2.pth')
    torch.save(checkpoint(2), folder / 'epoch_2.pth')
    return folder / 'epoch_2.pth'


def a_new_one_beside_sums_left_behind(folder):
    write_checkpoint(checkpoint(7), folder / 'epoch_2.pth')
    (folder / 'epoch_2.pth').unlink()
    return folder / 'epoch_2.pth'


def weights_with_sums(folder):
    write_checkpoint(checkpoint(2), folder / 'a.safetensors')
    return folder / 'a.safetensors'


def weights_without_sums(folder):
    sidecar_of(weights_with_sums(folder)).unlink()
    return folder / 'a.safetensors'


SCENES = [a_new_file, one_with_sums, one_without_sums, one_with_sums_of_another,
          a_new_one_beside_sums_left_behind, weights_with_sums, weights_without_sums]


@pytest.fixture
def quick_folder(tmp_path):
    """A folder in memory, where there is one: hundreds of flushes to a disk take a minute."""
    memory = Path('/dev/shm')
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def attempt(target, fails_at, how, monkeypatch):
    """Write iteration 3 to `target` with that fault; the os module that saw it."""
    faulty = FaultyOs(fails_at, how)
    if how == 'dies':
        child = os.fork()
        if child == 0:
            durable.os = faulty
            write_checkpoint(checkpoint(3), target)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        return faulty
    with monkeypatch.context() as patch:
        patch.setattr(durable, 'os', faulty)
        try:
            write_checkpoint(checkpoint(3), target)
        except CheckpointError as error:
            assert 'No space left on device' in str(error) and '\n' not in str(error)
    return faulty


def operations_of(prepare, folder, monkeypatch):
    """Number of operations of a write that succeeds."""
    folder.mkdir()
    seen = attempt(prepare(folder), -1, 'raises', monkeypatch).seen
    assert seen['write'] >= 4 and seen['fsync'] >= 4 and seen['replace'] >= 2
    return sum(seen.values())


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked and killed')
@pytest.mark.parametrize('how', ['raises', 'dies'])
@pytest.mark.parametrize('prepare', SCENES, ids=lambda scene: scene.__name__)
def test_fault_at_every_operation(quick_folder, monkeypatch, prepare, how):
    count = operations_of(prepare, quick_folder / 'count', monkeypatch)
    for fails_at in range(1, count + 1):
        folder = quick_folder / str(fails_at)
        folder.mkdir()
        write_checkpoint(checkpoint(1), folder / 'epoch_1.pth')
        target = prepare(folder)
        there = target.exists()
        attempt(target, fails_at, how, monkeypatch)

        problems = []
        newest = find_newest(folder, skipped=problems.append)
        assert not problems, fails_at
        verify_checkpoint(folder / 'epoch_1.pth')
        assert target.exists() or not there
        if target.exists():
            verify_checkpoint(target)
            values = read_checkpoint(target)['state_dict']['w'].unique().tolist()
            assert values in ([2.], [3.])
        of_a_run = target.suffix == '.pth' and target.exists()
        assert newest.path.name == (target.name if of_a_run else 'epoch_1.pth')

        write_checkpoint(checkpoint(4), target)
        assert read_checkpoint(target)['meta']['iter'] == 4
        names = {path.name for path in folder.iterdir()}
        assert names == {'epoch_1.pth', 'epoch_1.pth.sha256', target.name, f'{target.name}.sha256'}
        assert len(read_sums(target)) == 1


def test_a_fault_leaves_no_rest_where_the_process_lives(tmp_path, monkeypatch):
    count = operations_of(one_with_sums, tmp_path / 'count', monkeypatch)
    target = one_with_sums(tmp_path)
    for fails_at in range(1, count + 1):
        faulty = attempt(target, fails_at, 'raises', monkeypatch)
        hidden = list(tmp_path.glob('.*'))
        assert len(hidden) <= 1  # where deleting it was what failed
        if hidden:
            assert faulty.seen['unlink'] > 0
            hidden[0].unlink()


def test_kill_in_the_middle_of_a_write_is_cleaned_up_later(tmp_path):
    write_checkpoint(checkpoint(1), tmp_path / 'epoch_1.pth')
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        file = durable.FileBeside(tmp_path / 'epoch_2.pth')
        file.write(b'PK half a checkpoint')
        os.write(writer, b'x')
        signal.pause()
    os.read(reader, 1)
    own = durable.FileBeside(tmp_path / 'epoch_9.pth')  # a write of this process in the meantime
    durable.sweep(tmp_path)
    assert len(list(tmp_path.glob('.*.tmp'))) == 2  # both are alive
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert find_newest(tmp_path, skipped=pytest.fail).iteration == 1
    write_checkpoint(checkpoint(3), tmp_path / 'epoch_3.pth')
    assert list(tmp_path.glob('.*.tmp')) == [own.path]
    own.__exit__(None, None, None)
    assert not list(tmp_path.glob('.*'))


def test_other_hidden_files_are_not_ours_to_delete(tmp_path):
    for name in ('.notes.tmp', '.a.pth.12x.tmp', 'a.pth.1.tmp', '.vim.swp'):
        (tmp_path / name).write_text('mine')
    write_checkpoint(checkpoint(1), tmp_path / 'a.pth')
    assert len(list(tmp_path.iterdir())) == 6


def large(iteration, megabytes):
    return {'meta': {'iter': iteration}, 'state_dict': {
        'w': torch.full((int(megabytes * 2**18),), float(iteration))}}


def test_full_disk(small_disk):
    write_checkpoint(large(1, 0.9), small_disk / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match='No space left on device.*free some space'):
        write_checkpoint(large(2, 1.5), small_disk / 'epoch_2.pth')
    with pytest.raises(CheckpointError, match='No space left on device'):
        write_checkpoint(large(2, 1.5), small_disk / 'epoch_1.pth')  # nor over the old one
    assert find_newest(small_disk, skipped=pytest.fail).iteration == 1
    assert sorted(os.listdir(small_disk)) == ['epoch_1.pth', 'epoch_1.pth.sha256']
    write_checkpoint(large(2, 0.9), small_disk / 'epoch_2.pth')
    assert find_newest(small_disk, skipped=pytest.fail).iteration == 2


def test_disk_that_fills_up_by_degrees(small_disk):
    """Every amount of space that is left, from nothing to enough."""
    write_checkpoint(large(1, 0.25), small_disk / 'epoch_1.pth')
    filler, failed = small_disk / 'filler', 0
    for free in range(0, 80, 4):  # blocks of 4 KiB
        space = os.statvfs(small_disk)
        filler.write_bytes(bytes(max(space.f_bavail - free, 0) * space.f_bsize))
        try:
            write_checkpoint(large(2, 0.25), small_disk / 'epoch_1.pth')
            break
        except CheckpointError:
            failed += 1
        verify_checkpoint(small_disk / 'epoch_1.pth')
        assert find_newest(small_disk, skipped=pytest.fail).iteration == 1
        filler.unlink()
    assert failed >= 10 and find_newest(small_disk, skipped=pytest.fail).iteration == 2


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='limits of a process of its own')
def test_limit_on_the_size_of_files(tmp_path):
    """What a full disk is where none can be mounted: the system refuses in the middle."""
    write_checkpoint(large(1, 0.5), tmp_path / 'epoch_1.pth')
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            write_checkpoint(large(2, 1.5), tmp_path / 'epoch_2.pth')
        except CheckpointError as error:
            os._exit(3 if 'File too large' in str(error) else 4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert find_newest(tmp_path, skipped=pytest.fail).iteration == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_bytes_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / 'last_checkpoint'
    for fails_at in range(1, 6):
        write_bytes(b'old', path)
        with monkeypatch.context() as patch:
            patch.setattr(durable, 'os', FaultyOs(fails_at, 'raises'))
            with pytest.raises(CheckpointError):
                write_bytes(b'new', path)
        assert path.read_bytes() in (b'old', b'new')
    assert [item.name for item in Path(tmp_path).iterdir()] == ['last_checkpoint']
