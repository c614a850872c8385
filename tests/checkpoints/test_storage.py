"""Files are read without executing anything, and written whole or not at all."""
import argparse
import functools
import importlib
import io
import os
import pathlib
import pickle
import random
import subprocess
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from bevfusion_enhanced import compat
from bevfusion_enhanced.checkpoints import sidecar
from bevfusion_enhanced.checkpoints.storage import (
    publish_checkpoint,
    read_checkpoint,
    verify_checkpoint,
    write_bytes,
    write_checkpoint,
)
from bevfusion_enhanced.checkpoints.trust import is_trusted, trust_files
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
    """Objects that would create the file `mark`, or lead there, when unpickled the ordinary way."""
    code = f'open({str(mark)!r}, "w").close()'
    return {
        'os.system': Call(os.system, f'touch {mark}'),
        'eval': Call(eval, code),
        'exec': Call(exec, code),
        'open': Call(open, str(mark), 'w'),
        'popen': Call(subprocess.Popen, ['touch', str(mark)]),
        'getattr': Call(getattr, Call(__import__, 'os'), 'system'),
        'getattr of an allowed class': Call(getattr, HistoryBuffer, '__init__'),
        'chain of getattr': Call(getattr, Call(getattr, HistoryBuffer, 'mean'), '__globals__'),
        'partial': Call(functools.partial, os.system, f'touch {mark}'),
        'map': Call(map, os.system, [f'touch {mark}']),
        'default factory': defaultdict(functools.partial(os.system, f'touch {mark}'), a=1),
        'import': Call(importlib.import_module, 'antigravity'),
        'argument of an array': Call(np.core.multiarray._reconstruct, Call(eval, code), (0,), b'b'),
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


def test_refusal_names_the_object_and_the_way_round(tmp_path):
    torch.save({'x': Call(os.system, 'true')}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError,
                       match=r'evil\.pth holds (posix|nt)\.system.*add --trust-checkpoint'):
        read_checkpoint(tmp_path / 'evil.pth')


def handwritten(mark):
    """Pickles that no pickler writes; each ends in a call of os.system, or in a changed class."""
    touch = f'touch {mark}'.encode()
    return {
        'protocol 0': b'cos\nsystem\n(S\'' + touch + b'\'\ntR.',
        'INST': b'(S\'' + touch + b'\'\nios\nsystem\n.',
        'OBJ': b'(cos\nsystem\nS\'' + touch + b'\'\no.',
        'NEWOBJ': b'\x80\x02cos\nsystem\nU' + bytes([len(touch)]) + touch + b'\x85\x81.',
        'STACK_GLOBAL': pickle.dumps(Call(os.system, touch.decode()), protocol=4),
        'dotted name': b'\x80\x02ctorch\n_utils.os.system\nU' + bytes([len(touch)]) + touch
                       + b'\x85R.',
        'extension': b'\x80\x02\x82\x01.',
        'state of a class': b'\x80\x02cargparse\nNamespace\nN}U\x04evilK\x01s\x86b.',
        'state of a function': b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
                               b'N}U\x0c__defaults__K\x01\x85s\x86b.',
    }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', list(handwritten('')))
def test_handwritten_pickles_are_refused_untouched(tmp_path, kind, zipped):
    mark, path = tmp_path / 'mark', tmp_path / 'evil.pth'
    data = handwritten(mark)[kind]
    if zipped:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', data)
            archive.writestr('archive/version', b'3\n')
            archive.writestr('archive/byteorder', b'little')
    else:
        head = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
        path.write_bytes(b''.join(pickle.dumps(item, protocol=2) for item in head) + data)
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not mark.exists() and not hasattr(argparse.Namespace, 'evil')
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def test_several_threads_read_at_once(tmp_path):
    write_checkpoint({'message_hub': HistoryBuffer([1.0], [1]), 'w': torch.ones(1000)},
                     tmp_path / 'a.pth')
    allowed = set(torch.serialization.get_safe_globals())
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: read_checkpoint(tmp_path / 'a.pth'), range(200)))
    assert all(isinstance(one['message_hub'], HistoryBuffer) for one in read)
    assert set(torch.serialization.get_safe_globals()) == allowed  # and none more for good


def test_trust_holds_for_the_files_named_alone(tmp_path):
    mark = tmp_path / 'mark'
    for name in ('own.pth', 'other.pth'):
        torch.save({'x': Call(os.system, f'touch {mark}'), 'w': torch.ones(1)}, tmp_path / name)
    with trust_files([tmp_path / 'sub' / '..' / 'own.pth']):
        assert is_trusted(tmp_path / 'own.pth')
        with pytest.raises(CheckpointError, match='nothing of it was executed'):
            read_checkpoint(tmp_path / 'other.pth')
        assert not mark.exists()
        assert compat.load_from_local(str(tmp_path / 'own.pth'))['w'] == 1
        assert mark.exists()
    with pytest.raises(CheckpointError, match='nothing of it was executed'):
        read_checkpoint(tmp_path / 'own.pth')
    assert read_checkpoint(tmp_path / 'other.pth', trust=True)['w'] == 1


def test_trust_without_a_block_lasts(tmp_path):
    torch.save({'x': Call(abs, -1)}, tmp_path / 'own.pth')
    trust = trust_files([tmp_path / 'own.pth'])
    assert read_checkpoint(tmp_path / 'own.pth')['x'] == 1
    trust.__exit__(None, None, None)
    assert not is_trusted(tmp_path / 'own.pth')


def test_a_trusted_file_still_has_to_be_one(tmp_path):
    (tmp_path / 'own.pth').write_bytes(b'PK cut')
    torch.save({'x': Call(__import__, 'os')}, tmp_path / 'module.pth')
    data = (tmp_path / 'module.pth').read_bytes()
    (tmp_path / 'module.pth').write_bytes(data.replace(b'\x02\0\0\0os', b'\x02\0\0\0oo'))
    with pytest.raises(CheckpointError, match='damaged, cut short'):
        read_checkpoint(tmp_path / 'own.pth', trust=True)
    with pytest.raises(CheckpointError, match='needs the module oo, which is not installed'):
        read_checkpoint(tmp_path / 'module.pth', trust=True)


def test_checkpoints_of_other_code_bases_are_read(tmp_path):
    weights = OrderedDict([('vfe.w', torch.ones(2, 2))])
    files = {
        'openpcdet': {'epoch': 80, 'it': 100, 'model_state': weights, 'optimizer_state': {
            'state': {0: {'step': 3, 'exp_avg': torch.ones(2)}}, 'param_groups': [
                {'lr': np.float64(1e-3), 'betas': (0.95, 0.99), 'params': [0]}]},
            'version': 'pcdet+0.6.0+py0'},
        'mmcv': {'meta': {'mmcv_version': '1.4.0', 'epoch': 6, 'iter': 9, 'CLASSES': ('car',),
                          'PALETTE': [(1, 2, 3)], 'time': 'today', 'hook_msgs': {},
                          'config': ConfigDict(model=dict(type='BEVFusion'))},
                 'state_dict': weights, 'optimizer': {'state': {}, 'param_groups': []}},
        'lightning': {'state_dict': weights, 'pytorch-lightning_version': '2', 'callbacks': {
            'ModelCheckpoint': {'best_model_score': torch.tensor(1.), 'dirpath': 'a'}},
            'hyper_parameters': defaultdict(list, {'layers': [1, 2]}), 'loops': {}},
        'timm': {'arch': 'swin', 'state_dict': weights, 'epoch': 3, 'metric': np.float32(80.1),
                 'args': argparse.Namespace(lr=0.1), 'torch': torch.__version__},
    }
    for name, checkpoint in files.items():
        torch.save(checkpoint, tmp_path / f'{name}.pth')
        read = read_checkpoint(tmp_path / f'{name}.pth')
        assert set(read) == set(checkpoint), name
    assert read_checkpoint(tmp_path / 'lightning.pth')['hyper_parameters'] == {'layers': [1, 2]}
    assert read_checkpoint(tmp_path / 'timm.pth')['torch'] == torch.__version__
    assert read_checkpoint(tmp_path / 'mmcv.pth')['meta']['config']['model']['type'] == 'BEVFusion'


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


def weights():
    return OrderedDict([
        ('w', torch.arange(6.).reshape(2, 3)), ('t', torch.arange(6.).reshape(2, 3).T),
        ('half', torch.ones(3, dtype=torch.bfloat16)), ('n', torch.tensor(7)),
        ('flags', torch.tensor([True, False, True])), ('none', torch.zeros(0, 4)),
        ('b', torch.arange(3, dtype=torch.uint8))])


@pytest.mark.parametrize('mmap', [False, True])
def test_safetensors_there_and_back(tmp_path, mmap):
    meta = {'epoch': 3, 'classes': ['car'], 'nested': {'a': [1, 2.5, None, True]},
            'lr': np.float64(0.5)}
    path = tmp_path / 'a.safetensors'
    write_checkpoint({'state_dict': weights(), 'meta': meta}, path)
    read = read_checkpoint(path, mmap=mmap)
    assert read['meta'] == meta and set(read) == {'state_dict', 'meta'}
    assert read['state_dict'].keys() == weights().keys()
    for name, tensor in weights().items():
        assert torch.equal(read['state_dict'][name], tensor), name
        assert read['state_dict'][name].dtype == tensor.dtype
    read['state_dict']['w'].zero_()
    assert read_checkpoint(path)['state_dict']['w'].sum() == 15  # mapped for us alone
    verify_checkpoint(path)


def test_safetensors_agree_with_the_package(tmp_path):
    from safetensors.torch import load_file, save_file
    write_checkpoint({'state_dict': weights()}, tmp_path / 'ours.safetensors')
    torch.testing.assert_close(load_file(tmp_path / 'ours.safetensors'), dict(weights()))
    contiguous = {name: tensor.contiguous() for name, tensor in weights().items()}
    save_file(contiguous, tmp_path / 'theirs.safetensors', metadata={'format': 'pt', 'by': 'me'})
    read = read_checkpoint(tmp_path / 'theirs.safetensors')
    torch.testing.assert_close(read['state_dict'], contiguous)
    assert read['meta'] == {'by': 'me'}
    verify_checkpoint(tmp_path / 'theirs.safetensors')


@pytest.mark.parametrize('checkpoint, says', [
    ({'state_dict': {}, 'optimizer': {}}, 'cannot hold optimizer'),
    ({'state_dict': {'a': 1}}, r'cannot hold a \(int\)'),
    ({'state_dict': {'a': torch.ones(1, dtype=torch.complex64)}}, 'complex64'),
])
def test_safetensors_hold_weights_alone(tmp_path, checkpoint, says):
    with pytest.raises(CheckpointError, match=says):
        write_checkpoint(checkpoint, tmp_path / 'a.safetensors')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('size', [4, 12, 100, -1])
@pytest.mark.parametrize('sums', [True, False])
def test_safetensors_cut_short_are_found(tmp_path, size, sums):
    path = tmp_path / 'a.safetensors'
    write_checkpoint({'state_dict': weights()}, path)
    path.write_bytes(path.read_bytes()[:size])
    if not sums:
        sidecar.sidecar_of(path).unlink()
    with pytest.raises(CheckpointError, match='damaged'):
        verify_checkpoint(path)
    with pytest.raises(CheckpointError, match='damaged'):
        read_checkpoint(path)


def test_every_flipped_bit_is_found(tmp_path):
    """One bit in each of many bytes; without the sidecar those of the tensors at least."""
    numbers = random.Random(0)
    path = tmp_path / 'a.pth'
    write_checkpoint(runner_like_checkpoint(), path)
    whole = path.read_bytes()
    for place in [0, len(whole) - 1, *(numbers.randrange(len(whole)) for _ in range(300))]:
        data = bytearray(whole)
        data[place] ^= 1 << numbers.randrange(8)
        path.write_bytes(bytes(data))
        with pytest.raises(CheckpointError, match='damaged'):
            verify_checkpoint(path)
    path.write_bytes(whole)
    verify_checkpoint(path)


def test_sums_are_those_of_sha256sum(tmp_path):
    path = tmp_path / 'a.pth'
    digest = write_checkpoint(runner_like_checkpoint(), path)
    done = subprocess.run(['sha256sum', '-c', 'a.pth.sha256'], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    assert done.stdout == 'a.pth: OK\n' and not done.stderr
    line = (tmp_path / 'a.pth.sha256').read_text().split('\n')[0]
    assert line == f'{digest}  a.pth' == f'{sidecar.file_digest(path)}  a.pth'


def test_sums_left_behind_do_not_condemn_another_file(tmp_path):
    path = tmp_path / 'a.pth'
    write_checkpoint({'w': torch.ones(5)}, path)
    torch.save({'w': torch.zeros(5)}, path)  # as large, by a program that knows of no sums
    verify_checkpoint(path)
    data = bytearray(path.read_bytes())
    data[data.find(torch.zeros(5).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match='damaged'):  # nor do they bless it
        verify_checkpoint(path)


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'short  a.pth\n', b'0' * 63 + b'  a.pth'])
def test_a_sidecar_of_no_use_is_as_good_as_none(tmp_path, content):
    path = tmp_path / 'a.pth'
    write_checkpoint({'w': torch.ones(5)}, path)
    sidecar.sidecar_of(path).write_bytes(content)
    verify_checkpoint(path)


def test_published_file_is_named_after_its_sum(tmp_path):
    path = publish_checkpoint({'w': torch.ones(5)}, tmp_path / 'epoch_3.pth')
    assert path.name == f'epoch_3-{sidecar.file_digest(path)[:8]}.pth'
    verify_checkpoint(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name, f'{path.name}.sha256']


def test_what_cannot_be_stored_is_named(tmp_path):
    path = tmp_path / 'a.pth'
    write_checkpoint({'w': torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match='cannot be stored .*lambda'):
        write_checkpoint({'w': torch.ones(1), 'f': lambda: 0}, path)
    assert read_checkpoint(path)['w'] == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('whole', ['plain', 'of torch'])
def test_pickles_of_later_protocols_name_what_they_ask_for(tmp_path, whole, recwarn):
    mark, path = tmp_path / 'mark', tmp_path / 'evil.pth'
    content = {'state_dict': {'names': ['posix', 'system']}, 'x': Call(os.system, f'touch {mark}')}
    if whole == 'plain':
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r'evil\.pth holds (posix|nt)\.system, which is not'):
        read_checkpoint(path)
    assert not mark.exists() and not recwarn.list


def test_a_harmless_pickle_that_torch_does_not_read_is_not_called_damaged(tmp_path):
    path = tmp_path / 'weights.pkl'
    path.write_bytes(pickle.dumps({'w': np.ones(3), 'again': ['w', OrderedDict()]}, protocol=4))
    with pytest.raises(CheckpointError, match='cannot be read safely'):
        read_checkpoint(path)


@pytest.mark.parametrize('sums', [True, False], ids=['sidecar', 'sums within'])
def test_reading_finds_a_flipped_bit_where_asked_to(tmp_path, sums):
    path = tmp_path / 'epoch_1.pth'
    write_checkpoint({'state_dict': {'w': torch.zeros(1000)}}, path)
    if not sums:
        path.with_name('epoch_1.pth.sha256').unlink()
    assert read_checkpoint(path, verify=True)['state_dict']['w'].sum() == 0
    data = bytearray(path.read_bytes())
    data[data.index(bytes(3000)) + 1500] ^= 1
    path.write_bytes(data)
    assert read_checkpoint(path)['state_dict']['w'].sum() != 0  # torch does not notice
    with pytest.raises(CheckpointError, match='is damaged'):
        read_checkpoint(path, verify=True)


def test_what_has_no_sums_is_read_without(tmp_path):
    torch.save({'w': torch.ones(3)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / 'old.pth', verify=True)['w'].sum() == 3
