"""tools/checkpoint.py, command by command, and what it says of files that are no checkpoints."""
import io
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import toy

from bevfusion_enhanced import __version__
from bevfusion_enhanced.checkpoints.fingerprint import META_KEY, make_fingerprint
from bevfusion_enhanced.checkpoints.storage import read_checkpoint, write_checkpoint

TOOL = toy.REPO / 'tools' / 'checkpoint.py'
CONFIGS = toy.REPO / 'configs'


@pytest.fixture(scope='module')
def tool():
    return toy.load_module(TOOL)


@pytest.fixture
def call(tool, capsys, tmp_path, monkeypatch):
    """Run a command in a folder of its own: (exit status, output, error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(toy.ENGINE_TESTS))

    def run(*arguments):
        status = tool.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.strip()

    return run


def toy_state(width=8, heads=('object',), gates=()):
    from toy_task import ToyModel
    torch.manual_seed(0)
    return ToyModel(width=width, heads=heads, gates=gates).state_dict()


def as_run(state, iteration=8, **meta):
    record = make_fingerprint(state, version=__version__, class_lists={'classes': ['car']})
    return {'meta': {'epoch': iteration // 4, 'iter': iteration, META_KEY: record, **meta},
            'state_dict': state, 'optimizer': {'state': {}, 'param_groups': []},
            'message_hub': {'log_scalars': {}, 'runtime_info': {}}}


def test_help_is_quick(tmp_path):
    start = time.perf_counter()
    result = toy.call(TOOL, '--help', cwd=tmp_path)
    assert result.returncode == 0
    for command in ('inspect', 'diff', 'check', 'convert', 'average', 'explain', 'prune'):
        assert command in result.stdout
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine; torch alone takes longer


# ---- inspect and diff


def test_inspect_prints_a_module_a_line(call):
    state = OrderedDict([('heads.map.w', torch.ones(3)), ('heads.map.b', torch.ones(2).half()),
                         ('fuser.0.weight', torch.ones(2, 2, 3, 3))])
    write_checkpoint(as_run(state), 'a.pth')
    status, out, _ = call('inspect', 'a.pth')
    assert status == 0 and 'origin: bevfusion_enhanced' in out and 'iter: 8' in out
    assert 'training can go on from it: no, it holds no optimizer' not in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert rows['heads.map'][1:] == ['2', '5', '16', 'B', 'float32', 'float16', '.', '.']
    assert rows['all'][1:5] == ['3', '41', '160', 'B']


def test_nan_is_counted_and_is_no_success(call):
    state = {'heads.map.w': torch.tensor([1., float('nan'), float('inf')])}
    write_checkpoint(state, 'a.pth')
    status, out, error = call('inspect', 'a.pth')
    assert status == 2 and error.startswith('error: a.pth holds 2 values that are NaN or Inf')
    line = next(line for line in out.splitlines() if line.startswith('heads.map'))
    assert line.split()[-2:] == ['1', '1']


def test_diff_of_equal_and_of_other_weights(call):
    state = {'heads.map.w': torch.ones(4), 'fuser.w': torch.ones(2)}
    write_checkpoint(state, 'a.pth')
    write_checkpoint({'state_dict': {f'module.{k}': v for k, v in state.items()}}, 'b.pth')
    assert call('diff', 'a.pth', 'b.pth')[:2] == (0, 'a.pth and b.pth hold the same weights\n')
    write_checkpoint({'heads.map.w': torch.full((4,), 1.25), 'fuser.w': torch.ones(3),
                      'task_gca.w': torch.ones(1)}, 'c.pth')
    status, out, _ = call('diff', 'a.pth', 'c.pth')
    assert status == 0 and 'only in c.pth: task_gca.w' in out
    assert 'other shape: fuser.w (2,) -> (3,)' in out and '2.500e-01' in out


# ---- check


@pytest.fixture
def config(tmp_path):
    return toy.write_config(tmp_path)


def test_check_reports_and_is_strict_on_demand(call, config):
    write_checkpoint(as_run(toy_state()), 'a.pth')
    complete = call('check', 'a.pth', '--config', config, '--strict')
    assert complete[0] == 0 and 'every tensor of the model is found' in complete[1]
    options = ('--config', config, '--cfg-options', 'model.gates=[object]')
    status, out, _ = call('check', 'a.pth', *options)
    assert status == 0 and 'task_gca.object: 72 parameters, fresh' in out
    assert 'not found in checkpoint: task_gca.object.*' in out
    assert '72 parameters would be fresh' in out
    assert call('check', 'a.pth', *options, '--strict')[0] == 1


def test_check_takes_modules_from_several_files(call, config):
    write_checkpoint(as_run(toy_state(gates=['object'])), 'a.pth')
    write_checkpoint(toy_state(width=8), 'b.pth')
    status, out, _ = call('check', 'b.pth', 'task_gca=a.pth', '--config', config, '--strict',
                          '--cfg-options', 'model.gates=[object]')
    assert status == 0 and 'from a.pth: task_gca.object' in out


def test_check_leaves_nothing_behind(call, config, tmp_path):
    write_checkpoint(toy_state(), 'a.pth')
    before = sorted(tmp_path.rglob('*'))
    assert call('check', 'a.pth', '--config', config)[0] == 0
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('arguments, says', [
    (['nothing=a.pth'], 'the model has no module nothing'),
    (['a.pth', '--source-classes', 'labels=car'], '--source-classes'),
    (['none.pth'], 'none.pth does not exist'),
])
def test_check_of_what_cannot_be(call, config, arguments, says):
    write_checkpoint(toy_state(), 'a.pth')
    status, _, error = call('check', *arguments, '--config', config)
    assert status == 2 and says in error and len(error.splitlines()) == 1


# ---- convert and average


def test_convert_there_and_back(call):
    name = 'encoders.lidar.backbone.conv_input.0.weight'
    state = OrderedDict([(name, torch.randn(16, 3, 3, 3, 5)), ('fuser.0.weight', torch.randn(2, 3)),
                         ('heads.object.shared_conv.weight', torch.randn(4))])
    write_checkpoint(as_run(state), 'a.pth')
    assert call('convert', 'a.pth', 'b.pth', '--to', 'mit')[0] == 0
    assert read_checkpoint('b.pth')['state_dict'][name].shape == (3, 3, 3, 5, 16)
    status, out, _ = call('convert', 'b.pth', 'c.safetensors', '--to', 'native')
    assert status == 0 and 'the original BEVFusion' in out and 'written: c.safetensors' in out
    back = read_checkpoint('c.safetensors')['state_dict']
    assert all(torch.equal(back[key], value) for key, value in state.items())
    assert call('diff', 'a.pth', 'c.safetensors')[1].endswith('hold the same weights\n')


def test_convert_asks_a_config_for_geometry(call):
    state = {'encoders.camera.vtransform.depthnet.weight': torch.ones(2),
             'heads.object.shared_conv.weight': torch.ones(4), 'fuser.0.weight': torch.ones(1)}
    write_checkpoint(state, 'a.pth')
    status, _, error = call('convert', 'a.pth', 'b.pth', '--to', 'mit')
    assert status == 2 and 'give a config' in error
    arguments = ('convert', 'a.pth', 'b.pth', '--to', 'mit', '--config', CONFIGS /
                 'phase4a_task_gca.py')
    assert call(*arguments)[0] == 0
    frustum = read_checkpoint('b.pth')['state_dict']['encoders.camera.vtransform.frustum']
    assert frustum.shape == (118, 32, 88, 3)


def test_average_is_the_mean_and_lists_its_sources(call):
    for name, value in (('a.pth', 1.), ('b.pth', 2.), ('c.pth', 6.)):
        write_checkpoint({'heads.map.w': torch.full((2,), value)}, name)
    status, out, _ = call('average', 'a.pth', 'b.pth', 'c.pth', '--out', 'mean.pth')
    assert status == 0 and 'the mean of 3' in out
    mean = read_checkpoint('mean.pth')
    assert mean['state_dict']['heads.map.w'].tolist() == [3., 3.]
    assert mean['meta']['averaged_from'] == ['a.pth', 'b.pth', 'c.pth']


@pytest.mark.parametrize('command', [
    ('convert', 'a.pth', 'out.pth', '--to', 'native'),
    ('average', 'a.pth', 'a.pth', '--out', 'out.pth')])
def test_a_file_that_exists_is_kept_unless_forced(call, tmp_path, command):
    write_checkpoint({'heads.map.w': torch.ones(2), 'fuser.0.weight': torch.ones(1)}, 'a.pth')
    (tmp_path / 'out.pth').write_bytes(b'precious')
    status, _, error = call(*command)
    assert status == 2 and 'out.pth exists' in error and '--force' in error
    assert (tmp_path / 'out.pth').read_bytes() == b'precious'
    assert call(*command, '--force')[0] == 0
    assert 'state_dict' in read_checkpoint('out.pth')


def test_what_differs_is_not_averaged(call, tmp_path):
    write_checkpoint({'heads.map.w': torch.ones(2)}, 'a.pth')
    write_checkpoint({'heads.map.w': torch.ones(3)}, 'b.pth')
    status, _, error = call('average', 'a.pth', 'b.pth', '--out', 'out.pth')
    assert status == 2 and '(2,) and (3,)' in error and not (tmp_path / 'out.pth').exists()


# ---- explain


def test_explain_two_configs(call):
    status, out, _ = call('explain', CONFIGS / 'phase3_enhanced_seg.py',
                          CONFIGS / 'phase4a_task_gca.py')
    assert status == 0 and 'structure - ' in out and 'meaning - ' not in out
    assert 'model.task_gca' in out and 'not to be resumed' in out
    same = call('explain', CONFIGS / 'phase1_baseline.py', CONFIGS / 'phase1_baseline.py')
    assert same[:2] == (0, 'nothing differs\n')


def test_explain_shows_brackets_and_whole_keys(call):
    out = call('explain', CONFIGS / 'phase4a_task_gca.py',
               CONFIGS / 'mini' / 'phase4a_task_gca.py')[1]
    key = 'train_dataloader.dataset.pipeline[BEVFusionGlobalRotScaleTrans].scale_ratio_range'
    assert any(line.startswith(key) for line in out.splitlines())


def test_explain_checkpoints_and_configs_in_any_mix(call, config):
    from mmengine.config import Config
    text = Config.fromfile(config, import_custom_modules=False).pretty_text
    first = as_run(toy_state())
    first['meta'][META_KEY].update(config=text)
    second = as_run(toy_state(gates=['object']))
    second['meta'][META_KEY].update(config=text.replace('lr=0.01', 'lr=0.02'))
    write_checkpoint(first, 'a.pth')
    write_checkpoint(second, 'b.pth')
    out = call('explain', 'a.pth', 'b.pth')[1]
    assert 'new task_gca.object.*' in out and 'optim_wrapper.optimizer.lr' in out
    assert call('explain', 'a.pth', config)[1] == 'nothing differs\n'
    assert 'safe to resume: only the training differs' in call('explain', config, 'b.pth')[1]


def test_explain_leaves_out_what_a_training_adds_to_its_config(call, config):
    from bevfusion_enhanced.engine.commands.train import prepare
    from bevfusion_enhanced.engine.configuration.config import load_config, use_run_files
    trained = load_config(str(config), import_modules=False)
    trained.work_dir, trained.load_from = 'work_dirs/toy', 'other.pth'
    prepare(trained, launcher='none')
    use_run_files(trained, load_from=['other.pth'])
    written = as_run(toy_state())
    written['meta'][META_KEY].update(config=trained.pretty_text)
    write_checkpoint(written, 'a.pth')
    assert call('explain', 'a.pth', config)[1] == 'nothing differs\n'
    assert call('explain', config, 'a.pth')[1] == 'nothing differs\n'
    Path('b.py').write_text(Path(config).read_text().replace('seed=0', 'seed=7').replace(
        'default_hooks = dict(', 'default_hooks = dict(interrupt=dict(type="Other"), '))
    out = call('explain', 'a.pth', 'b.py')[1]
    assert 'randomness.seed' in out and 'default_hooks.interrupt.type' in out
    assert 'work_dir' not in out and 'run_record' not in out and 'out_dir' not in out


def test_explain_of_a_file_that_says_nothing(call, config):
    write_checkpoint({'heads.map.w': torch.ones(2)}, 'a.pth')
    status, _, error = call('explain', 'a.pth', config)
    assert status == 2 and 'says nothing of how it was trained' in error
    assert call('explain', 'none.py', config)[0] == 2


# ---- prune


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / 'run'
    for epoch in (1, 2, 3):
        write_checkpoint(as_run({'a.w': torch.ones(4)}, iteration=4 * epoch),
                         folder / f'epoch_{epoch}.pth')
    write_checkpoint(as_run({'a.w': torch.ones(4)}), folder / 'best_NDS_epoch_1.pth')
    return folder


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


ALL = ['best_NDS_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']


@pytest.mark.parametrize('answer, left', [
    ('n\n', ALL), ('\n', ALL), ('', ALL), ('y\n', [ALL[0], ALL[3]])])
def test_prune_asks_before_it_deletes(call, run_folder, monkeypatch, answer, left):
    monkeypatch.setattr('sys.stdin', io.StringIO(answer))
    status, out, _ = call('prune', run_folder)
    assert status == 0 and 'epoch_1.pth' in out and 'kB' in out
    assert names(run_folder) == left
    assert ('nothing was deleted' in out) == (left == ALL)


def test_prune_without_asking_and_once_more(call, run_folder):
    status, out, _ = call('prune', run_folder, '--keep', 2, '--yes')
    assert status == 0 and 'deleted 1 files' in out
    assert names(run_folder) == [ALL[0], ALL[2], ALL[3]]
    assert 'nothing to delete' in call('prune', run_folder, '--keep', 2, '--yes')[1]


# ---- bad input


def bad_file(kind, path):
    state = {'heads.map.w': torch.arange(4000.), 'fuser.0.weight': torch.ones(1)}
    write_checkpoint({'state_dict': state}, path)
    whole = path.read_bytes()
    path.with_name(f'{path.name}.sha256').unlink()
    if kind == 'truncated':
        path.write_bytes(whole[:-5000])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'page':
        path.write_bytes(b'<!DOCTYPE html><html><body>Sign in to download</body></html>')
    elif kind == 'pointer':
        path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
    elif kind == 'family':
        write_checkpoint({'bert.encoder.layer.0.attention.self.query.weight': torch.ones(9)}, path)
    elif kind == 'nan':
        state['heads.map.w'][7] = float('nan')
        write_checkpoint({'state_dict': state}, path)
    elif kind == 'text':
        path.write_bytes(b'404: Not Found')


UNREADABLE = [('truncated', 'damaged, cut short'), ('empty', 'is empty (0 bytes)'),
              ('page', 'is a web page'), ('pointer', 'git-LFS pointer'),
              ('text', 'no checkpoint')]
COMMANDS = [
    ('inspect', 'bad.pth'), ('diff', 'bad.pth', 'good.pth'), ('diff', 'good.pth', 'bad.pth'),
    ('check', 'bad.pth', '--config', 'configs/mini/toy.py'),
    ('convert', 'bad.pth', 'out.pth', '--to', 'native'),
    ('average', 'good.pth', 'bad.pth', '--out', 'out.pth'), ('explain', 'good.pth', 'bad.pth')]


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: ' '.join(command[:2]))
def test_unreadable_files_are_told_apart_and_nothing_is_written(call, config, tmp_path, command):
    write_checkpoint({'heads.map.w': torch.ones(2)}, 'good.pth')
    for kind, says in UNREADABLE:
        bad_file(kind, tmp_path / 'bad.pth')
        before = sorted(tmp_path.rglob('*'))
        status, _, error = call(*command)
        assert status == 2 and error.startswith('error: ') and len(error.splitlines()) == 1, kind
        assert 'bad.pth' in error and says in error, (kind, error)
        assert sorted(tmp_path.rglob('*')) == before, kind


@pytest.mark.parametrize('kind, command, says', [
    ('nan', ('convert', 'bad.pth', 'out.pth', '--to', 'native'), 'NaN or Inf (1 in heads.map'),
    ('nan', ('average', 'bad.pth', 'bad.pth', '--out', 'out.pth'), 'NaN or Inf (1 in heads.map'),
    ('nan', ('inspect', 'bad.pth'), '1 values that are NaN'),
    ('family', ('convert', 'bad.pth', 'out.pth', '--to', 'native'), 'a language model'),
    ('family', ('check', 'bad.pth', '--config', 'configs/mini/toy.py'), 'does not fit'),
])
def test_the_wrong_weights_are_refused(call, config, tmp_path, kind, command, says):
    bad_file(kind, tmp_path / 'bad.pth')
    status, _, error = call(*command)
    assert status == 2 and says in error and len(error.splitlines()) == 1
    assert not (tmp_path / 'out.pth').exists()


def test_nan_where_it_would_be_loaded_is_refused(call, config):
    state = toy_state()
    state['heads.object.weight'][0, 0] = float('nan')
    write_checkpoint(state, 'bad.pth')
    status, _, error = call('check', 'bad.pth', '--config', config)
    assert status == 2 and 'NaN or Inf (1 in heads.object' in error


class Runs:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return open, ('trace', 'w')


def test_code_in_a_file_runs_only_on_trust(call, tmp_path):
    torch.save({'heads.map.w': torch.ones(2), 'note': Runs()}, 'a.pth')
    status, _, error = call('inspect', 'a.pth')
    assert status == 2 and 'not data' in error and '--trust-checkpoint' in error
    assert not (tmp_path / 'trace').exists()
    assert call('inspect', 'a.pth', '--trust-checkpoint')[0] == 0
    assert (tmp_path / 'trace').exists()
