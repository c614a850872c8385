import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import mmdet3d
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from bevfusion_enhanced.datasets.info_files import read_info_file, write_info_file
from bevfusion_enhanced.datasets.nuscenes_infos import create_infos
from bevfusion_enhanced.datasets.scene_reader import SceneReader
from bevfusion_enhanced.datasets.vocabulary import CAMERAS, INFO_CLASSES
from bevfusion_enhanced.errors import ConfigError, DataError

VERSION = 'v1.0-mini'


@pytest.fixture
def copy(mini_nuscenes, tmp_path) -> Path:
    """A root with tables of its own and the sensor files of the simulated dataset."""
    shutil.copytree(mini_nuscenes / VERSION, tmp_path / VERSION)
    for name in ('samples', 'sweeps', 'maps'):
        (tmp_path / name).symlink_to(mini_nuscenes / name)
    return tmp_path


@pytest.fixture(scope='module')
def infos(mini_nuscenes) -> dict:
    return {split: read_info_file(mini_nuscenes / f'nuscenes_infos_{split}.pkl')
            for split in ('train', 'val')}


def edit(root: Path, table: str, change) -> None:
    path = root / VERSION / f'{table}.json'
    records = json.loads(path.read_text())
    path.write_text(json.dumps(change(records)))


def test_splits_are_the_official_ones_in_time(infos):
    assert {info['scene_name'] for info in infos['train']['data_list']} == {'scene-0061'}
    assert {info['scene_name'] for info in infos['val']['data_list']} == {'scene-0103'}
    for content in infos.values():
        entries = content['data_list']
        assert [entry['sample_idx'] for entry in entries] == list(range(4))
        assert entries[0]['prev'] == '' and entries[-1]['next'] == ''
        tokens = [entry['token'] for entry in entries]
        assert [entry['next'] for entry in entries[:-1]] == tokens[1:]
        np.testing.assert_allclose(np.diff([entry['timestamp'] for entry in entries]), 0.5)


def test_metainfo_is_that_of_v2(infos):
    metainfo = infos['val']['metainfo']
    assert metainfo['version'] == VERSION and metainfo['info_version'] == '1.1'
    classes = {name: label for name, label in metainfo['categories'].items() if label >= 0}
    assert list(classes) == list(INFO_CLASSES) and list(classes.values()) == list(range(10))
    assert metainfo['categories']['animal'] == -1


def test_sweeps_are_the_scans_before(infos, mini_nuscenes):
    entries = infos['train']['data_list']
    assert 'lidar_sweeps' not in entries[0]
    for entry in entries[1:]:
        times = [entry['timestamp']] + [sweep['timestamp'] for sweep in entry['lidar_sweeps']]
        assert len(times) <= 11 and (np.diff(times) < 0).all()
        for sweep in entry['lidar_sweeps']:
            assert (mini_nuscenes / sweep['lidar_points']['lidar_path']).is_file()
    assert any('samples/' in sweep['lidar_points']['lidar_path']
               for sweep in entries[1]['lidar_sweeps'])


def test_matrices_agree_with_each_other(infos):
    entry = infos['val']['data_list'][2]
    lidar2global = np.array(entry['ego2global']) @ entry['lidar_points']['lidar2ego']
    assert list(entry['images']) == list(CAMERAS)
    for image in entry['images'].values():
        through_global = (np.linalg.inv(image['cam2ego']) @ np.linalg.inv(image['ego2global'])
                          @ lidar2global)
        np.testing.assert_allclose(through_global, image['lidar2cam'], atol=1e-6)
        assert (image['height'], image['width']) == (90, 160)
    for sweep in entry['lidar_sweeps']:
        through_global = (np.linalg.inv(sweep['lidar_points']['lidar2ego'])
                          @ np.linalg.inv(sweep['ego2global']) @ lidar2global)
        np.testing.assert_allclose(through_global, sweep['lidar_points']['lidar2sensor'], atol=1e-6)


def test_boxes_are_those_of_the_devkit_in_the_lidar_frame(infos, mini_nuscenes):
    nusc = NuScenes(version=VERSION, dataroot=str(mini_nuscenes), verbose=False)
    entry = infos['val']['data_list'][1]
    sample = nusc.get('sample', entry['token'])
    _, boxes, _ = nusc.get_sample_data(sample['data']['LIDAR_TOP'])
    assert len(boxes) == len(entry['instances']) > 10
    for box, instance in zip(boxes, entry['instances'], strict=True):
        np.testing.assert_allclose(instance['bbox_3d'][:3], box.center, atol=1e-6)
        np.testing.assert_allclose(instance['bbox_3d'][3:6], box.wlh[[1, 0, 2]])
        along = box.orientation.rotation_matrix[:, 0]
        yaw = np.arctan2(along[1], along[0])
        np.testing.assert_allclose(instance['bbox_3d'][6], yaw, atol=1e-6)


def test_equal_to_what_mmdetection3d_writes(infos, mini_nuscenes, tmp_path, monkeypatch):
    theirs = infos_by_mmdetection3d(mini_nuscenes, tmp_path, monkeypatch)
    ours = {info['token']: info for info in infos['val']['data_list']}
    assert [info['token'] for info in theirs['data_list']] == list(ours)
    for info in theirs['data_list']:
        assert_covers(ours[info['token']], info)


def infos_by_mmdetection3d(root: Path, folder: Path, monkeypatch) -> dict:
    """The val infos by MMDetection3D's script, which insists on ./data/nuscenes."""
    (folder / 'data').mkdir()
    (folder / 'data' / 'nuscenes').symlink_to(root)
    monkeypatch.chdir(folder)
    tools = Path(mmdet3d.__file__).parent / '.mim' / 'tools'
    monkeypatch.syspath_prepend(str(tools.parent))
    modules = []
    for name in ('nuscenes_converter', 'update_infos_to_v2'):
        spec = spec_from_file_location(name, tools / 'dataset_converters' / f'{name}.py')
        modules.append(module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    converter, updater = modules
    nusc = NuScenes(version=VERSION, dataroot='data/nuscenes', verbose=False)
    train = {scene['token'] for scene in nusc.scene if scene['name'] == 'scene-0061'}
    val = {scene['token'] for scene in nusc.scene} - train
    _, infos = converter._fill_trainval_infos(nusc, train, val)
    with open('nuscenes_infos_val.pkl', 'wb') as file:
        pickle.dump(dict(infos=infos, metadata=dict(version=VERSION)), file)
    os.makedirs('out')
    monkeypatch.setattr(updater, 'generate_nuscenes_camera_instances', lambda *_: {})
    updater.update_nuscenes_infos('nuscenes_infos_val.pkl', 'out')
    return read_info_file('out/nuscenes_infos_val.pkl')


def assert_covers(ours, theirs, path: str = '') -> None:
    """Everything that MMDetection3D's infos say is said by ours, within its float32 rounding."""
    if isinstance(theirs, dict):
        for key in theirs.keys() - {'cam_instances'}:
            assert_covers(ours[key], theirs[key], f'{path}/{key}')
    elif isinstance(theirs, list) and theirs and isinstance(theirs[0], dict):
        assert len(ours) == len(theirs), path
        for mine, other in zip(ours, theirs, strict=True):
            assert_covers(mine, other, f'{path}[]')
    elif path.endswith('lidar_path'):
        assert theirs.endswith(ours)
    elif isinstance(theirs, str):
        assert ours == theirs, path
    elif theirs is not None:
        # Their yaw is another projection of the tilted box: 2e-4 rad away.
        np.testing.assert_allclose(ours, theirs, atol=1e-3 if path.endswith('bbox_3d') else 2e-5,
                                   err_msg=path)


def test_workers_write_the_same(mini_nuscenes, tmp_path):
    written = create_infos(root_path=mini_nuscenes, version=VERSION, out_dir=tmp_path, workers=2,
                           info_prefix='other', max_sweeps=1)
    assert {split: infos[1:] for split, infos in written.items()} == dict(train=(4, 1), val=(4, 1))
    entry = read_info_file(tmp_path / 'other_infos_val.pkl')['data_list'][1]
    assert len(entry['lidar_sweeps']) == 1


def test_a_killed_run_goes_on(copy, tmp_path_factory, monkeypatch):
    """Two scenes: the process is killed while it reads the second one."""
    out, whole = tmp_path_factory.mktemp('killed'), tmp_path_factory.mktemp('whole')
    read = SceneReader.scene
    names = []

    def slow(self, scene):
        names.append(scene['name'])
        if len(names) > 1:
            time.sleep(60)
        return read(self, scene)

    monkeypatch.setattr(SceneReader, 'scene', slow)
    process = multiprocessing.get_context('fork').Process(
        target=create_infos, kwargs=dict(root_path=copy, version=VERSION, out_dir=out))
    process.start()
    deadline = time.monotonic() + 60
    while not list(out.glob('.nuscenes_infos.partial/*/scene-*.pkl')):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(out.glob('*.pkl'))

    monkeypatch.setattr(SceneReader, 'scene', lambda self, scene: names.append(scene['name'])
                        or read(self, scene))
    create_infos(root_path=copy, version=VERSION, out_dir=out)
    done, = names
    assert done in ('scene-0061', 'scene-0103')
    assert [path.name for path in sorted(out.iterdir())] == ['nuscenes_infos_train.pkl',
                                                             'nuscenes_infos_val.pkl']
    create_infos(root_path=copy, version=VERSION, out_dir=whole)
    for path in out.iterdir():
        assert read_info_file(path) == read_info_file(whole / path.name)


def test_scenes_done_from_other_tables_are_done_again(copy, tmp_path, monkeypatch):
    stop = monkeypatch.setattr
    read = SceneReader.scene
    stop(SceneReader, 'scene', lambda self, scene: read(self, scene)
         if scene['name'] == 'scene-0061' else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        create_infos(root_path=copy, version=VERSION)
    assert len(list(copy.glob('.nuscenes_infos.partial/*/scene-0061.pkl'))) == 1
    edit(copy, 'log', lambda logs: [{**log, 'location': 'boston-seaport'} for log in logs])
    stop(SceneReader, 'scene', read)
    written = create_infos(root_path=copy, version=VERSION)
    for split in written.values():
        assert {info['location'] for info in read_info_file(split.path)['data_list']} == {
            'boston-seaport'}
    assert not list(copy.glob('.*'))


def test_a_killed_worker_is_one_line(copy, monkeypatch):
    monkeypatch.setattr(SceneReader, 'scene', lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match='a worker process was killed.*fewer --workers'):
        create_infos(root_path=copy, version=VERSION, workers=2)


def test_the_test_split_has_no_annotations(copy):
    """v1.0-test: every scene is of the test split, and nothing is annotated."""
    test_scenes = create_splits_scenes()['test']
    edit(copy, 'scene', lambda scenes: [{**scene, 'name': name}
                                        for scene, name in zip(scenes, test_scenes)])
    for table in ('sample_annotation', 'instance'):
        edit(copy, table, lambda records: [])
    (copy / VERSION).rename(copy / 'v1.0-test')
    written = create_infos(root_path=copy, version='v1.0-test')
    assert list(written) == ['test'] and written['test'].samples == 8
    content = read_info_file(written['test'].path)
    assert not any(info['instances'] for info in content['data_list'])
    assert content['data_list'][0]['location'] and content['data_list'][1]['lidar_sweeps']


def test_the_writer_leaves_whole_files_only(tmp_path):
    path = tmp_path / 'infos.pkl'
    write_info_file(dict(metainfo={}, data_list=[1]), path)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        write_info_file(dict(metainfo={}, data_list=[lambda: 0]), path)
    assert read_info_file(path)['data_list'] == [1]
    assert [file.name for file in tmp_path.iterdir()] == ['infos.pkl']


def test_an_empty_split_is_an_empty_file(copy):
    edit(copy, 'scene', lambda scenes: [{**scene, 'name': 'scene-0061'} if index == 0
                                        else {**scene, 'name': 'scene-0553'}
                                        for index, scene in enumerate(scenes)])
    written = create_infos(root_path=copy, version=VERSION)
    assert written['train'].scenes == 2 and written['val'].samples == 0
    assert read_info_file(written['val'].path)['data_list'] == []


def test_own_splits_of_another_version(copy):
    (copy / VERSION).rename(copy / 'v1.0-town')
    with pytest.raises(ConfigError, match=r"'v1.0-town' has no official splits.*splits\.json"):
        create_infos(root_path=copy, version='v1.0-town')
    (copy / 'v1.0-town' / 'splits.json').write_text('{"night": ["scene-0103"]}')
    written = create_infos(root_path=copy, version='v1.0-town')
    assert list(written) == ['night'] and written['night'].samples == 4


def test_missing_sensor_files(copy, mini_nuscenes):
    (copy / 'samples').unlink()
    shutil.copytree(mini_nuscenes / 'samples', copy / 'samples')
    lost = sorted((copy / 'samples' / 'CAM_BACK').iterdir())[0]
    lost.unlink()
    with pytest.raises(DataError, match='1 sensor files of 1 of 2 scenes') as error:
        create_infos(root_path=copy, version=VERSION)
    assert lost.name in str(error.value) and '\n' not in str(error.value)
    assert not list(copy.glob('*.pkl'))
    written = create_infos(root_path=copy, version=VERSION, skip_incomplete_scenes=True)
    assert sum(infos.scenes for infos in written.values()) == 1


@pytest.mark.parametrize('spoil, message', [
    (lambda root: (root / VERSION / 'sample.json').unlink(), r"tables \['sample'\] are missing"),
    (lambda root: (root / VERSION / 'sample.json').write_text('['), r'cannot read the tables'),
    (lambda root: edit(root, 'ego_pose', lambda poses: poses[:1]), r'no record or channel'),
    (lambda root: edit(root, 'scene', lambda scenes: [{**scene, 'name': 'scene-x'}
                                                      for scene in scenes]), r'no scene .* splits'),
    (lambda root: shutil.rmtree(root / VERSION), r'v1\.0-mini does not exist')])
def test_broken_tables_are_one_line(copy, spoil, message):
    spoil(copy)
    with pytest.raises(DataError, match=message) as error:
        create_infos(root_path=copy, version=VERSION)
    assert '\n' not in str(error.value)


def test_wrong_root_and_version(mini_nuscenes, tmp_path):
    with pytest.raises(DataError, match='is no folder either'):
        create_infos(root_path=tmp_path / 'nowhere', version=VERSION)
    with pytest.raises(DataError, match=r"versions in .*\['v1.0-mini'\]"):
        create_infos(root_path=mini_nuscenes, version='v1.0-trainval')
    with pytest.raises(ConfigError, match='workers'):
        create_infos(root_path=mini_nuscenes, version=VERSION, workers=0)


@pytest.mark.parametrize('content, message', [
    (None, 'No such file'), (b'rubbish', 'cannot be read'), (pickle.dumps([1]), 'v2 form'),
    (pickle.dumps(dict(infos=[], metadata={})), 'v2 form')])
def test_wrong_info_files(tmp_path, content, message):
    path = tmp_path / 'infos.pkl'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f'{message}.*tools/create_data.py'):
        read_info_file(path)


def test_command_line(repo, mini_nuscenes, tmp_path, capsys):
    spec = spec_from_file_location('create_data', repo / 'tools' / 'create_data.py')
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ['--root-path', str(mini_nuscenes), '--version', VERSION, '--out-dir',
                 str(tmp_path), '--workers', '1']
    assert tool.main(arguments) == 0
    assert 'val: 4 key frames of 1 scenes -> ' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'nuscenes_infos_train.pkl', 'nuscenes_infos_val.pkl']
    assert tool.main(arguments[:3] + ['v1.0-trainval']) != 0
    error = capsys.readouterr().err
    assert error.startswith('error: no tables') and error.count('\n') == 1
