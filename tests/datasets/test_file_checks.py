"""--verify lists what is missing or cut short, and nothing else."""
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from bevfusion_enhanced.datasets import object_database_writer
from bevfusion_enhanced.datasets.file_checks import verify_files
from bevfusion_enhanced.datasets.info_files import read_info_file, read_pickle
from bevfusion_enhanced.datasets.scene_reader import SceneReader
from bevfusion_enhanced.errors import ConfigError

VERSION = 'v1.0-mini'


@pytest.fixture(scope='module')
def tool(repo):
    spec = spec_from_file_location('create_data_tool', repo / 'tools' / 'create_data.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(mini_nuscenes, tmp_path) -> Path:
    """A copy of the dataset that may be spoilt."""
    root = tmp_path / 'data'
    shutil.copytree(mini_nuscenes, root)
    return root


def first(folder: Path) -> Path:
    return sorted(folder.iterdir())[0]


def used_map(root: Path) -> Path:
    location = read_info_file(root / 'nuscenes_infos_val.pkl')['data_list'][0]['location']
    return root / 'maps' / 'expansion' / f'{location}.json'


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def test_command_line(own, tool, capsys):
    arguments = ['--root-path', str(own), '--version', VERSION, '--workers', '1']
    assert tool.main([*arguments, '--gt-database', '--gt-sweeps', '1']) == 0
    printed = capsys.readouterr()
    assert 'GT database: car ' in printed.out and '(1 scenes cut in this run)' in printed.out
    assert printed.err == ''  # neither a bar nor a table where there is no terminal
    assert not [path for path in own.rglob('*') if path.name.startswith('.')]
    before = {path: path.stat().st_mtime_ns for path in own.rglob('*') if path.is_file()}
    assert tool.main([*arguments, '--verify']) == 0
    assert 'no missing or broken' in capsys.readouterr().out

    objects = read_pickle(own / 'nuscenes_dbinfos_train.pkl')['car']
    spoilt = dict(scan=first(own / 'samples' / 'LIDAR_TOP'), sweep=first(own / 'sweeps/LIDAR_TOP'),
                  image=first(own / 'samples' / 'CAM_BACK'), object=own / objects[0]['path'],
                  mask=next(iter(own.glob('maps/*.png'))))
    cut(spoilt['scan'], 7)
    cut(spoilt['image'], 1500)
    cut(spoilt['object'], 4)
    cut(spoilt['mask'], 30)
    spoilt['sweep'].unlink()
    assert tool.main([*arguments, '--verify']) == 1
    lines = capsys.readouterr().out.splitlines()
    by_path = dict(line.split(': ', 1) for line in lines[:-1])
    assert by_path.keys() == {str(path) for path in spoilt.values()}
    assert by_path[str(spoilt['sweep'])] == 'missing'
    for name, says in (('scan', '13 bytes more than whole records of 20'),
                       ('image', 'no end of a JPEG'), ('mask', 'no end of a PNG'),
                       ('object', f"not the size of its {objects[0]['num_points_in_gt']} points")):
        path = spoilt[name]
        assert by_path[str(path)].startswith(f'{path.stat().st_size} bytes, ')
        assert says in by_path[str(path)]
    assert lines[-1].endswith('5 missing or broken')
    after = {path: path.stat().st_mtime_ns for path in own.rglob('*') if path.is_file()}
    assert [path for path in before if path not in after] == [spoilt['sweep']]
    assert after.keys() <= before.keys()


@pytest.mark.parametrize('spoil, path, says', [
    (lambda root: (root / 'nuscenes_infos_val.pkl').unlink(), 'nuscenes_infos_val.pkl', 'missing'),
    (lambda root: cut(root / 'nuscenes_infos_val.pkl', 9), 'nuscenes_infos_val.pkl',
     'cannot be read'),
    (lambda root: (root / 'nuscenes_dbinfos_train.pkl').write_bytes(b'rubbish'),
     'nuscenes_dbinfos_train.pkl', 'cannot be read'),
    (lambda root: cut(used_map(root), 40), 'maps/expansion', 'cannot be read'),
    (lambda root: first(root / 'samples' / 'CAM_FRONT').write_bytes(b''), 'samples/CAM_FRONT',
     '0 bytes, empty'),
    (lambda root: first(root / 'samples' / 'CAM_FRONT').write_bytes(b'<html>'), 'samples/CAM_FRONT',
     'neither a JPEG nor a PNG')])
def test_one_problem_is_one_line(own, spoil, path, says):
    spoil(own)
    problem, = verify_files(root_path=own, version=VERSION, workers=2).problems
    assert path in problem.path and says in str(problem) and '\n' not in str(problem)


def test_a_run_stopped_in_the_gt_database_reads_no_scene_again(own, tool, capsys, monkeypatch):
    arguments = ['--root-path', str(own), '--version', VERSION, '--workers', '1', '--gt-database']

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(object_database_writer, '_cut_scene', stop)
        assert tool.main(arguments) == 130
    with monkeypatch.context() as patch:
        patch.setattr(SceneReader, 'scene', stop)
        assert tool.main(arguments) == 0
    assert 'val: 4 key frames' in capsys.readouterr().out
    assert not [path for path in own.rglob('*') if path.name.startswith('.')]


def test_wrong_requests(own, tool, capsys):
    with pytest.raises(ConfigError, match='workers is 0'):
        verify_files(root_path=own, version=VERSION, workers=0)
    assert tool.main(['--root-path', str(own), '--version', 'v1.0-town', '--verify']) == 2
    assert 'has no official splits' in capsys.readouterr().err
    (own / VERSION).rename(own / 'v1.0-test')
    assert tool.main(['--root-path', str(own), '--version', 'v1.0-test', '--gt-database']) == 2
    assert "v1.0-test has no split 'train'" in capsys.readouterr().err
