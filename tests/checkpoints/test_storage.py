"""Files are read without executing anything, and written whole or not at all."""
import io
import os
import pathlib
import pickle
import random
import subprocess
import tarfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from bevfusion_enhanced import compat
from bevfusion_enhanced.checkpoints.storage import (
    read_checkpoint,
    verify_checkpoint,
    write_bytes,
    write_checkpoint,
)
from bevfusion_enhanced.errors import CheckpointError


@pytest.fixture(autouse=True, params=['this torch', 'torch before 2.6'])
def _reader(request, monkeypatch):
    """Read as this torch does, and as is done where it takes no allow-list."""
    if request.param != 'this torch':
        monkeypatch.setattr(compat, 'TAKES_ALLOW_LIST', False)


def runner_like_checkpoint():
    history = HistoryBuffer()
    history.update(1.0)
    history.update(3.0)
    return {
        'meta': {'iter': 4, 'lr': np.float64(0.1), 'ids': np.arange(3), 'flag': np.bool_(True),
                 'names': np.array(['a', 'bc']), 'mixed': np.array([1, 'x', None], dtype=object),
                 'path': pathlib.Path('a') / 'b', 'dataset_meta': ConfigDict(classes=['car'])},
        'state_dict': OrderedDict(w=torch.arange(6.).reshape(2, 3), n=torch.tensor(2)),
        'optimizer': {'state': {0: {'step': torch.tensor(1.)}}, 'param_groups': [{'lr': 1}]},
        'message_hub': {'log_scalars': OrderedDict(loss=history)},
    }


@pytest.mark.parametrize('mmap', [False, True])
def test_everything_a_runner_writes_comes_back(tmp_path, mmap):
    write_checkpoint(runner_like_checkpoint(), tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth', mmap=mmap)
    torch.testing.assert_close(read['state_dict']['w'], torch.arange(6.).reshape(2, 3))
    assert read['meta']['lr'] == 0.1 and read['meta']['flag']
    assert read['meta']['mixed'].tolist() == [1, 'x', None]
    assert read['meta']['names'].tolist() == ['a', 'bc']
    assert read['meta']['path'].parts == ('a', 'b')
    assert read['meta']['dataset_meta']['classes'] == ['car']
    loss = read['message_hub']['log_scalars']['loss']
    assert loss.mean() == 2.0 and loss.statistics('max') == 3.0


def test_old_torch_format_is_read(tmp_path):
    torch.save({'model_state': {'w': torch.ones(3)}, 'epoch': 2}, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / 'old.pth', mmap=True)['epoch'] == 2


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def malicious(mark):
    """Ten objects that would create the file `mark` when unpickled the ordinary way."""
    code = f'open({str(mark)!r}, "w").close()'
    return {
        'os.system': Call(os.system, f'touch {mark}'),
        'eval': Call(eval, code),
        'exec': Call(exec, code),
        'open': Call(open, str(mark), 'w'),
        'popen': Call(subprocess.Popen, ['touch', str(mark)]),
        'getattr': Call(getattr, Call(__import__, 'os'), 'system'),
        'getattr of an allowed class': Call(getattr, HistoryBuffer, '__init__'),
        'nested': {'deep': [OrderedDict(a=(Call(list, Call(os.system, f'touch {mark}')),))]},
        'pickle.loads': Call(pickle.loads, pickle.dumps(Call(os.system, f'touch {mark}'))),
        'torch.load': Call(torch.load, str(mark)),
    }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', list(malicious('')))
def test_files_that_would_run_code_are_refused_untouched(tmp_path, kind, zipped):
    mark, path = tmp_path / 'mark', tmp_path / 'evil.pth'
    checkpoint = {'state_dict': {'w': torch.ones(1)}, 'meta': malicious(mark)[kind]}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match='nothing of it was executed'):
        read_checkpoint(path)
    assert not mark.exists()


def test_refusal_names_the_object(tmp_path):
    torch.save({'x': Call(os.system, 'true')}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match=r'evil\.pth holds (posix|nt)\.system'):
        read_checkpoint(tmp_path / 'evil.pth')


def test_tar_of_the_first_torch_is_refused(tmp_path):
    with tarfile.open(tmp_path / 'old.tar', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            data = pickle.dumps(Call(os.system, f'touch {tmp_path / "mark"}'))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / 'old.tar')
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize('content, says', [
    (b'', 'is empty'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n', 'git-LFS pointer'),
    (b'<!DOCTYPE html><html></html>', 'is a web page'),
    (b'\n<html>Not found</html>', 'is a web page'),
    (b'hello', 'no checkpoint'),
    (bytes(20), 'no checkpoint'),
], ids=['empty', 'lfs', 'page', 'page2', 'text', 'zeros'])
def test_files_of_something_else_are_named_as_such(tmp_path, content, says):
    path = tmp_path / 'x.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match='does not exist'):
        read_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.99])
def test_cut_short_anywhere_is_an_error(tmp_path, share, zipped):
    path = tmp_path / 'a.pth'
    torch.save(runner_like_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match='damaged, cut short'):
        read_checkpoint(path)


def test_a_lone_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(3), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='holds a Tensor'):
        read_checkpoint(tmp_path / 'a.pth')


def test_verify_finds_a_flipped_bit(tmp_path):
    path = tmp_path / 'a.pth'
    weights = torch.full((100,), 7.)
    write_checkpoint({'w': weights}, path)
    verify_checkpoint(path)
    data = bytearray(path.read_bytes())
    data[data.find(weights.numpy().tobytes()) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match='damaged'):
        verify_checkpoint(path)


def test_failed_write_keeps_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    write_bytes(b'old', path)

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(CheckpointError, match='No space left'):
        write_bytes(b'new', path)
    assert path.read_bytes() == b'old'
    assert [item.name for item in tmp_path.iterdir()] == ['a.pth']


def test_damage_anywhere_is_an_error_or_harmless(tmp_path):
    """Bytes changed at random, also in the state of arrays, which NumPy itself does not check."""
    numbers = random.Random(0)
    path = tmp_path / 'a.pth'
    for zipped in (True, False):
        torch.save(runner_like_checkpoint(), path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(numbers.choice([1, 3, 10])):
                data[numbers.randrange(len(data))] = numbers.randrange(256)
            path.write_bytes(bytes(data))
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                assert '\n' not in str(error)


@pytest.mark.parametrize('value', [
    np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.).reshape(2, 3)), np.zeros((0, 4)),
    np.array(3), np.arange(3, dtype='>i4'), np.array(['a', 'bcd']), np.array([b'x', b'yz']),
    np.array([True, False]), np.array([1 + 2j]), np.array([[1, 'a'], [None, [2]]], dtype=object),
    np.float32(0.5), np.int64(-3), np.str_('text'), np.dtype('float32'),
])
def test_numpy_values_come_back_as_they_were(tmp_path, value):
    torch.save({'a': [value]}, tmp_path / 'a.pth')
    read, = read_checkpoint(tmp_path / 'a.pth')['a']
    assert type(read) is type(value)
    if isinstance(value, np.ndarray):
        assert read.dtype == value.dtype and read.flags.writeable
        assert read.tolist() == value.tolist()
    else:
        assert read == value


@pytest.mark.parametrize('value', [
    np.zeros(2, dtype=[('x', 'f4')]), np.datetime64('2020-01-01'), np.ma.zeros(3),
], ids=['structured', 'date', 'masked'])
def test_numpy_values_beyond_plain_data_are_refused(tmp_path, value):
    torch.save({'a': value}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / 'a.pth')
