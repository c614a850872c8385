"""What is in a checkpoint, what differs between two, the average of several, and little memory."""
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from bevfusion_enhanced.checkpoints.averaging import average
from bevfusion_enhanced.checkpoints.fingerprint import META_KEY, make_fingerprint
from bevfusion_enhanced.checkpoints.inspection import compare, diff, inspect, is_parameter
from bevfusion_enhanced.checkpoints.mapped_memory import MappedFile, scan
from bevfusion_enhanced.checkpoints.naming import convert
from bevfusion_enhanced.checkpoints.storage import read_checkpoint
from bevfusion_enhanced.errors import CheckpointError

REPO = Path(__file__).resolve().parents[2]
SPARSE = 'encoders.lidar.backbone.conv_input.0.weight'


def weights(seed=0):
    make = torch.Generator().manual_seed(seed)
    return OrderedDict([
        (SPARSE, torch.randn(16, 3, 3, 3, 5, generator=make)),
        ('decoder.neck.weight', torch.randn(4, 2, generator=make)),
        ('decoder.neck.running_mean', torch.randn(4, generator=make)),
        ('decoder.neck.num_batches_tracked', torch.tensor(10 + seed)),
        ('heads.map.classifier.0.weight', torch.randn(3, 4, generator=make)),
    ])


def trained(state, **more):
    """As MMEngine writes a checkpoint while training."""
    optimizer = {'state': {0: {'step': torch.tensor(5.), 'exp_avg': torch.zeros(2),
                               'exp_avg_sq': torch.zeros(2)}},
                 'param_groups': [{'lr': 1e-3, 'params': [0]}, {'lr': 1e-4, 'params': [1]}]}
    return {'meta': {'epoch': 3, 'iter': 120, 'mmengine_version': '0.10.7'}, 'state_dict': state,
            'optimizer': optimizer, 'message_hub': {'log_scalars': {}}, **more}


def saved(folder, content, name='a.pth'):
    torch.save(content, folder / name)
    return folder / name


# ---- inspect


def test_a_training_checkpoint_from_end_to_end(tmp_path):
    state = weights()
    record = make_fingerprint(state, version='0.1.0', class_lists={'classes': ['car', 'bus']},
                              geometry={'voxel_size': [0.1, 0.1, 0.2]})
    content = trained(state)
    content['meta'][META_KEY] = record
    found = inspect(saved(tmp_path, content))
    assert found.origin.name == 'native' and found.origin.wrappers == ('state_dict',)
    assert found.size == (tmp_path / 'a.pth').stat().st_size and found.not_finite == 0
    assert found.metadata['epoch'] == '3' and found.metadata['iter'] == '120'
    assert found.metadata['classes'] == 'car, bus'
    assert found.metadata['geometry.voxel_size'] == '[0.1, 0.1, 0.2]'
    assert found.metadata['bevfusion_enhanced_version'] == '0.1.0'
    assert found.entries == ('optimizer', 'message_hub') and found.lacking == ()
    optimizer, = found.optimizers
    assert (optimizer.kind, optimizer.groups, optimizer.parameters) == ('Adam or AdamW', 2, 1)
    assert optimizer.rates == (1e-3, 1e-4)
    neck = next(module for module in found.modules if module.module == 'decoder.neck')
    assert (neck.tensors, neck.parameters) == (3, 8)
    assert neck.bytes == 8 * 4 + 4 * 4 + 8 and neck.dtypes == ('float32', 'int64')
    lidar = next(m for m in found.modules if m.module == 'encoders.lidar.backbone')
    assert lidar.parameters == 16 * 27 * 5


def test_the_optimizer_is_named_by_the_file_before_it_is_guessed(tmp_path):
    text = "optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1))"
    content = trained(weights())
    content['meta']['cfg'] = text
    assert inspect(saved(tmp_path, content)).optimizers[0].kind == 'AdamW'
    content['optimizer_names'] = {'': {'kind': 'NAdam', 'groups': []}}
    assert inspect(saved(tmp_path, content)).optimizers[0].kind == 'NAdam'
    two = {name: content['optimizer'] for name in ('camera', 'lidar')}
    names = [o.name for o in inspect(saved(tmp_path, {**content, 'optimizer': two})).optimizers]
    assert names == ['camera', 'lidar']


def test_nan_and_inf_are_counted_in_every_type(tmp_path):
    nan, inf = float('nan'), float('inf')
    state = OrderedDict([
        ('heads.a.w', torch.tensor([1., nan, inf, -inf, nan])),
        ('heads.a.h', torch.tensor([nan, 1., inf]).half()),
        ('heads.b.bf', torch.tensor([65504., inf]).bfloat16()),
        ('heads.c.big', torch.full((1000,), 65504.).half()),  # whose sum is not finite
        ('heads.c.count', torch.tensor(3)),
    ])
    found = {m.module: m for m in inspect(saved(tmp_path, state)).modules}
    assert (found['heads.a'].nan, found['heads.a'].inf) == (3, 3)
    assert (found['heads.b'].nan, found['heads.b'].inf) == (0, 1)
    assert (found['heads.c'].nan, found['heads.c'].inf) == (0, 0)
    assert found['heads.a'].dtypes == ('float32', 'float16')


def test_a_bare_state_dict_cannot_be_resumed(tmp_path):
    found = inspect(saved(tmp_path, weights()))
    assert found.lacking == ('meta', 'optimizer', 'message_hub') and found.optimizers == ()
    assert found.entries == () and found.metadata == {} and found.origin.wrappers == ()


def test_what_is_no_tensor_is_passed_over(tmp_path):
    found = inspect(saved(tmp_path, {'fuser.w': torch.ones(2), 'note': 'mine', 'epoch': 3}))
    assert [module.module for module in found.modules] == ['fuser']


def test_a_newer_versions_file_is_refused(tmp_path):
    content = trained(weights())
    content['meta'][META_KEY] = {'version': '99.0.0'}
    with pytest.raises(CheckpointError, match='written by bevfusion_enhanced 99.0.0'):
        inspect(saved(tmp_path, content))


def test_parameters_are_told_from_buffers():
    assert is_parameter('a.weight', torch.zeros(1)) and is_parameter('mean', torch.zeros(1))
    assert not is_parameter('a.running_var', torch.zeros(1))
    assert not is_parameter('a.index', torch.zeros(1, dtype=torch.int64))


# ---- diff


def test_the_same_weights_in_other_clothes_are_equal(tmp_path):
    state = weights()
    wrapped = OrderedDict((f'module.{name}', value) for name, value in state.items())
    first = saved(tmp_path, state)
    assert diff(first, saved(tmp_path, {'state_dict': wrapped}, 'b.pth')).equal
    original = convert(state, to='mit', geometry={})
    assert original[SPARSE].shape == (3, 3, 3, 5, 16)
    assert diff(first, saved(tmp_path, {'state_dict': original}, 'c.pth')).equal


def test_every_kind_of_difference_is_told():
    first = weights()
    second = OrderedDict(first)
    second['decoder.neck.weight'] = first['decoder.neck.weight'] * 1.5
    second['decoder.neck.num_batches_tracked'] = torch.tensor(11)
    second['heads.map.classifier.0.weight'] = torch.zeros(5, 4)
    second[SPARSE] = first[SPARSE].double()
    second['task_gca.w'] = torch.zeros(1)
    del second['decoder.neck.running_mean']
    found = compare(first, second)
    assert found.only_first == ('decoder.neck.running_mean',) and not found.equal
    assert found.only_second == ('task_gca.w',)
    assert found.shapes == (('heads.map.classifier.0.weight', (3, 4), (5, 4)),)
    assert found.dtypes == ((SPARSE, 'float32', 'float64'),)
    modules = {module.module: module for module in found.modules}
    assert modules['encoders.lidar.backbone'].changed == 0
    neck = modules['decoder.neck']
    assert (neck.tensors, neck.changed) == (2, 2)
    assert neck.relative == pytest.approx(0.5)
    assert neck.largest == pytest.approx(float(first['decoder.neck.weight'].abs().max()) / 2)


def test_relative_change_where_there_was_nothing_or_no_number():
    zero, one = {'a.w': torch.zeros(3)}, {'a.w': torch.ones(3)}
    assert compare(zero, one).modules[0].relative == float('inf')
    assert compare(zero, zero).modules[0].relative == 0 and compare(zero, zero).equal
    broken = {'a.w': torch.tensor([1., float('nan'), 1.])}
    found = compare(one, broken)
    assert found.modules[0].relative != found.modules[0].relative and not found.equal


# ---- average


def test_floats_are_averaged_and_counters_are_the_last_ones():
    states = [weights(seed) for seed in range(3)]
    mean = average(states, sources=['a', 'b', 'c'])
    assert list(mean) == list(states[0])
    for name in (SPARSE, 'decoder.neck.running_mean'):
        expected = torch.stack([state[name].double() for state in states]).mean(0).float()
        assert torch.equal(mean[name], expected) and mean[name].dtype == torch.float32
    assert int(mean['decoder.neck.num_batches_tracked']) == 12
    mean[SPARSE].zero_()
    assert states[0][SPARSE].abs().sum() > 0  # nothing is shared with the sources


def test_halves_do_not_overflow_on_the_way():
    states = [{'a.w': torch.full((2,), 60000.).half()} for _ in range(4)]
    assert torch.equal(average(states, sources='abcd')['a.w'], states[0]['a.w'])


@pytest.mark.parametrize('change, says', [
    (lambda state: state.pop('decoder.neck.weight'), 'only a.pth has decoder.neck.weight'),
    (lambda state: state.update(extra=torch.ones(1)), 'only b.pth has extra'),
    (lambda state: state.update({'decoder.neck.weight': torch.ones(4, 3)}),
     r'decoder.neck.weight is \(4, 2\) and \(4, 3\)'),
    (lambda state: state.update({'decoder.neck.weight': torch.full((4, 2), float('nan'))}),
     'b.pth holds values that are NaN or Inf .8 in decoder.neck'),
])
def test_what_cannot_be_averaged_is_named(change, says):
    other = weights(1)
    change(other)
    with pytest.raises(CheckpointError, match=says):
        average([weights(), other], sources=['a.pth', 'b.pth'])


def test_one_alone_has_no_average():
    with pytest.raises(CheckpointError, match='at least two'):
        average([weights()], sources=['a'])


# ---- memory


def test_pieces_cover_each_value_once():
    long = torch.arange(10_000_000, dtype=torch.float32)
    pieces = [piece for piece, in scan(long)]
    assert len(pieces) == 3 and torch.equal(torch.cat(pieces), long)
    turned = long.view(1000, 10000).t()
    both = list(scan(turned, turned.contiguous()))
    assert len(both) > 1 and all(torch.equal(a, b) for a, b in both)
    assert torch.equal(torch.cat([a for a, _ in both]), turned)
    assert [tuple(p.shape) for p, in scan(torch.ones(()))] == [()]
    assert [tuple(p.shape) for p, in scan(torch.ones(0, 3))] == [(0, 3)]


@pytest.mark.skipif(sys.platform != 'linux', reason='pages are given back on Linux alone')
def test_released_pages_are_read_again_and_others_left_alone(tmp_path):
    state = {'w': torch.arange(3_000_000, dtype=torch.float32)}
    path = saved(tmp_path, state)
    mapped = read_checkpoint(path, mmap=True)
    file = MappedFile(path)
    assert file._ranges
    file.release(mapped['w'])
    assert torch.equal(mapped['w'], state['w'])
    file.release(mapped['w'].view(1000, 3000).t())
    assert torch.equal(mapped['w'], state['w'])
    own = state['w'].clone()
    file.release(own)  # not of the file: freeing it would lose it
    assert torch.equal(own, state['w'])


@pytest.mark.skipif(sys.platform != 'linux', reason='resident memory is read from /proc')
def test_half_a_gigabyte_is_inspected_in_a_fifth(tmp_path):
    part = torch.ones(31_250_000)  # 125 MB
    path = saved(tmp_path, {f'heads.h{i}.w': part.clone() for i in range(4)})
    assert path.stat().st_size > 500e6
    script = tmp_path / 'measure.py'
    script.write_text(textwrap.dedent(f'''
        import sys, types
        package = types.ModuleType('bevfusion_enhanced')  # without the models, which weigh more
        package.__path__ = [{str(REPO / 'projects' / 'bevfusion_enhanced')!r}]
        package.__version__ = '0.1.0'
        sys.modules['bevfusion_enhanced'] = package
        import torch
        from bevfusion_enhanced.checkpoints.inspection import inspect
        from bevfusion_enhanced.checkpoints.storage import read_checkpoint
        torch.set_num_threads(1)

        def field(name):
            lines = open('/proc/self/status').read().splitlines()
            return next(int(l.split()[1]) / 1e3 for l in lines if l.startswith(name))

        def peak(function):
            open('/proc/self/clear_refs', 'w').write('5')  # the peak starts anew from here
            before = field('VmRSS')
            function()
            return field('VmHWM') - before

        def carelessly():
            state = read_checkpoint(sys.argv[1], mmap=True)
            return [float(value.sum()) for value in state.values()]

        assert sum(m.parameters for m in inspect(sys.argv[1]).modules) == 125_000_000
        print(peak(lambda: inspect(sys.argv[1])), peak(carelessly))
    '''))
    result = subprocess.run([sys.executable, str(script), str(path)], capture_output=True,
                            text=True, timeout=120, cwd=tmp_path)
    path.unlink()
    assert result.returncode == 0, result.stderr
    ours, careless = map(float, result.stdout.split())
    assert careless > 400  # megabytes: the measure sees pages of a mapped file
    assert ours < 100
