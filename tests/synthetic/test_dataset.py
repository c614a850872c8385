"""The dataset as the official tools read it, and how it is generated."""
import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import numpy as np
import pytest
import shapely
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from nuscenes.utils.splits import create_splits_scenes

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.synthetic.dataset import MANIFEST, Settings, create_dataset, simulate_scene
from bevfusion_enhanced.synthetic.nuscenes_writer import ATTRIBUTES
from bevfusion_enhanced.synthetic.plan import plan_scenes
from bevfusion_enhanced.synthetic.scene import CLASSES
from bevfusion_enhanced.synthetic.town import LOCATIONS

Options = Dict[str, float]
SPLITS = ('mini_train', 'mini_val')


@pytest.fixture(scope='module')
def nusc(tiny_dataset: Path) -> NuScenes:
    return NuScenes(version='v1.0-mini', dataroot=str(tiny_dataset), verbose=False)


def annotations(nusc: NuScenes, split: str) -> Iterator[Tuple[dict, dict]]:
    """(sample, annotation) pairs of a split."""
    names = create_splits_scenes()[split]
    for sample in nusc.sample:
        if nusc.get('scene', sample['scene_token'])['name'] in names:
            for token in sample['anns']:
                yield sample, nusc.get('sample_annotation', token)


def digests(root: Path) -> Dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob('*')) if path.is_file()}


def test_devkit_loads_and_lists(tiny_settings: Options, nusc: NuScenes,
                                capsys: pytest.CaptureFixture) -> None:
    nusc.list_scenes()
    assert 'scene-0061' in capsys.readouterr().out
    assert len(nusc.scene) == tiny_settings['scenes']
    assert len(nusc.sample) == tiny_settings['scenes'] * tiny_settings['keyframes']
    assert len(nusc.category) == 23 and len(nusc.attribute) == 8 and len(nusc.map) == 4
    assert [attribute['name'] for attribute in nusc.attribute] == list(ATTRIBUTES)


def test_every_token_is_unique_and_every_reference_resolves(nusc: NuScenes) -> None:
    tokens: Dict[str, set] = {}
    for table in nusc.table_names:
        records = getattr(nusc, table)
        tokens[table] = {record['token'] for record in records}
        assert len(tokens[table]) == len(records)
    own_chain = {'prev': None, 'next': None}
    for table in nusc.table_names:
        for record in getattr(nusc, table):
            for field, value in record.items():
                if not field.endswith('_token') and field not in own_chain:
                    continue
                target = table if field in own_chain else field[:-6]
                if field.startswith(('first_', 'last_')):
                    target = {'sample': 'sample', 'annotation': 'sample_annotation'}[
                        field.split('_')[1]]
                ends = value == '' and field in own_chain
                assert ends or value in tokens[target], (table, field)


def test_every_file_of_every_sensor_is_there(tiny_settings: Options, nusc: NuScenes,
                                             tiny_dataset: Path) -> None:
    counts = Counter((data['channel'], data['is_key_frame']) for data in nusc.sample_data)
    keyframes = tiny_settings['scenes'] * tiny_settings['keyframes']
    sweeps = tiny_settings['scenes'] * (tiny_settings['keyframes'] - 1) * tiny_settings['sweeps']
    assert counts.pop(('LIDAR_TOP', False)) == sweeps
    assert len(counts) == 7 and set(counts.values()) == {keyframes}
    listed = {data['filename'] for data in nusc.sample_data}
    found = {str(path.relative_to(tiny_dataset)) for folder in ('samples', 'sweeps')
             for path in (tiny_dataset / folder).rglob('*') if path.is_file()}
    assert listed == found


def test_sensor_chains_run_in_time_and_sweeps_precede_their_key_frame(nusc: NuScenes) -> None:
    for data in nusc.sample_data:
        if data['next']:
            after = nusc.get('sample_data', data['next'])
            assert after['channel'] == data['channel'] and after['timestamp'] > data['timestamp']
        sample = nusc.get('sample', data['sample_token'])
        lag = sample['timestamp'] - data['timestamp']
        if data['channel'] == 'LIDAR_TOP':
            assert lag == 0 if data['is_key_frame'] else lag in (50_000, 100_000)
        else:
            assert 0 <= lag < 50_000


def test_box_velocity_is_the_simulated_velocity(tiny_settings: Options, nusc: NuScenes,
                                                tiny_dataset: Path) -> None:
    settings = Settings(**tiny_settings)
    checked = 0
    for plan in plan_scenes(settings.scenes):
        traffic = simulate_scene(plan=plan, settings=settings)
        scene = next(scene for scene in nusc.scene if scene['name'] == plan.name)
        sample = nusc.get('sample', nusc.get('sample', scene['first_sample_token'])['next'])
        boxes = traffic.agent_boxes(0.5)
        velocities = [traffic.agent_velocities(t) for t in (0.01, 0.25, 0.5, 0.75, 0.99)]
        change = np.ptp(velocities, axis=0).max(-1)  # 0 on a straight line at constant speed
        for token in sample['anns']:
            annotation = nusc.get('sample_annotation', token)
            agent = np.hypot(*(boxes[:, :2] - annotation['translation'][:2]).T).argmin()
            if annotation['prev'] and annotation['next']:
                error = np.abs(nusc.box_velocity(token)[:2] - velocities[2][agent]).max()
                assert error <= change[agent] + 1e-6
                checked += change[agent] < 0.2 and np.hypot(*velocities[2][agent]) > 0.5
    assert checked >= 5


@pytest.mark.parametrize('location', LOCATIONS)
def test_map_api_reads_every_location(tiny_dataset: Path, location: str) -> None:
    town_map = NuScenesMap(dataroot=str(tiny_dataset), map_name=location)
    width, height = town_map.canvas_edge
    layers = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area',
              'road_divider', 'lane_divider']
    patch = (width / 2 + 0.123, height / 2 + 0.456, height, width)
    mask = town_map.get_map_mask(patch, 0.0, layers, (400, 400))
    assert mask.shape == (7, 400, 400) and mask.any(axis=(1, 2)).all()


def test_held_out_streets_are_unseen_in_training(nusc: NuScenes, tiny_dataset: Path) -> None:
    for count in range(2, 11):
        places = defaultdict(set)
        for plan in plan_scenes(count):
            places[plan.name in create_splits_scenes()['mini_val']].add(plan.location)
        assert len(places) == 2 and not places[True] & places[False]
    maps = {location: NuScenesMap(dataroot=str(tiny_dataset), map_name=location)
            for location in LOCATIONS}
    masks = {location: town_map.get_map_mask((150.123, 150.456, 280, 280), 0.0, ['drivable_area'],
                                             (280, 280))[0].astype(bool)
             for location, town_map in maps.items()}
    for location, mask in masks.items():
        for other in LOCATIONS[:LOCATIONS.index(location)]:
            assert (mask & masks[other]).sum() / (mask | masks[other]).sum() < 0.6


def test_every_map_class_lies_around_the_ego_in_both_splits(nusc: NuScenes,
                                                            tiny_dataset: Path) -> None:
    layers = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area',
              'road_divider', 'lane_divider']
    for scene in nusc.scene:
        location = nusc.get('log', scene['log_token'])['location']
        town_map = NuScenesMap(dataroot=str(tiny_dataset), map_name=location)
        sample = nusc.get('sample', scene['first_sample_token'])
        x, y, _ = nusc.get('ego_pose', sample['data']['LIDAR_TOP'])['translation']
        mask = town_map.get_map_mask((x, y, 100, 100), 1.0, layers, (200, 200)).any(axis=(1, 2))
        assert mask[:5].all() and mask[5:].any()


def test_scenes_of_one_town_take_place_in_different_parts_of_it() -> None:
    plans = [plan for plan in plan_scenes(10) if plan.name in create_splits_scenes()['mini_val']]
    settings = Settings(scenes=10, keyframes=4, sweeps=0, image_scale=0.1, seed=3,
                        lidar_columns=542)
    drives = [simulate_scene(plan=plan, settings=settings).ego_poses[:, :2] for plan in plans]
    apart = np.hypot(*(drives[0][:, None] - drives[1]).reshape(-1, 2).T)
    assert len(drives) == 2 and apart.min() > 60


@pytest.mark.parametrize('split', SPLITS)
def test_ground_truth_as_predictions_scores_at_the_ceiling(nusc: NuScenes, split: str,
                                                           tmp_path: Path) -> None:
    results: Dict[str, List[dict]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for sample, annotation in annotations(nusc, split):
        if annotation['num_lidar_pts'] == 0:
            continue
        attribute = [nusc.get('attribute', token)['name']
                     for token in annotation['attribute_tokens']]
        results[sample['token']].append({
            'sample_token': sample['token'],
            **{field: annotation[field] for field in ('translation', 'size', 'rotation')},
            'velocity': nusc.box_velocity(annotation['token'])[:2].tolist(),
            'detection_name': category_to_detection_name(annotation['category_name']),
            'detection_score': float(rng.uniform(0.1, 1.0)),
            'attribute_name': attribute[0] if attribute else ''})
    path = tmp_path / 'results.json'
    path.write_text(json.dumps({'meta': {'use_lidar': True}, 'results': results}))
    metrics, _ = DetectionEval(nusc, config=config_factory('detection_cvpr_2019'), eval_set=split,
                               result_path=str(path), output_dir=str(tmp_path),
                               verbose=False).evaluate()
    assert metrics.mean_ap == pytest.approx(1.0, abs=1e-6)
    assert metrics.nd_score == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize('split', SPLITS)
def test_every_class_is_met_by_the_lidar_in_every_scene(tiny_settings: Options, nusc: NuScenes,
                                                        split: str) -> None:
    met = Counter(category_to_detection_name(annotation['category_name'])
                  for _, annotation in annotations(nusc, split) if annotation['num_lidar_pts'] >= 5)
    assert set(met) == set(CLASSES)
    assert min(met.values()) >= tiny_settings['keyframes'], met


def test_num_lidar_pts_counts_the_points_inside_the_box(nusc: NuScenes, tiny_dataset: Path) -> None:
    with_points = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample['data']['LIDAR_TOP'])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            count = nusc.get('sample_annotation', box.token)['num_lidar_pts']
            assert points_in_box(box, points).sum() == count
            with_points += count > 0
    assert with_points > 40 * len(nusc.sample)


def test_annotated_boxes_do_not_interpenetrate(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        boxes = [nusc.get_box(token) for token in sample['anns']]
        shapes = np.array([shapely.polygons(box.bottom_corners()[:2].T) for box in boxes])
        first, second = shapely.STRtree(shapes).query(shapes, predicate='intersects')
        assert (first == second).all()


def test_tracks_have_no_gaps_and_keep_their_size(nusc: NuScenes) -> None:
    for instance in nusc.instance:
        token, track = instance['first_annotation_token'], []
        while token:
            track.append(nusc.get('sample_annotation', token))
            token = track[-1]['next']
        assert len(track) == instance['nbr_annotations'] >= 2
        assert track[-1]['token'] == instance['last_annotation_token']
        samples = [annotation['sample_token'] for annotation in track]
        assert [nusc.get('sample', token)['next'] for token in samples[:-1]] == samples[1:]
        assert all(annotation['size'] == track[0]['size']
                   and annotation['instance_token'] == instance['token'] for annotation in track)
        assert max(annotation['num_lidar_pts'] for annotation in track) > 0
        steps = np.diff([annotation['translation'] for annotation in track], axis=0)
        assert np.hypot(steps[:, 0], steps[:, 1]).max() < 0.5 * 11


def test_attributes_suit_class_and_speed(nusc: NuScenes) -> None:
    for annotation in nusc.sample_annotation:
        names = [nusc.get('attribute', token)['name'] for token in annotation['attribute_tokens']]
        family = annotation['category_name'].split('.')[0]
        if family == 'movable_object':
            assert names == []
            continue
        speed = np.hypot(*nusc.box_velocity(annotation['token'])[:2])
        is_moving = names[0].endswith(('.moving', '.with_rider'))
        assert len(names) == 1 and is_moving == (speed > 0.2)


def test_visibility_falls_behind_an_occluder(nusc: NuScenes) -> None:
    levels: Dict[str, List[int]] = defaultdict(list)
    for annotation in nusc.sample_annotation:
        levels[annotation['visibility_token']].append(annotation['num_lidar_pts'])
    assert set(levels) == {'1', '2', '3', '4'}
    assert np.median(levels['1']) < np.median(levels['4'])


def test_same_settings_same_bytes_in_any_process(tiny_settings: Options, tmp_path: Path,
                                                 repo: Path) -> None:
    small = {**tiny_settings, 'keyframes': 2, 'sweeps': 1, 'image_scale': 0.05,
             'lidar_columns': 128}
    create_dataset(out=tmp_path / 'first', workers=2, **small)
    # A package without its __init__, which would import much that the simulator has no need of.
    script = ('import sys, types; package = types.ModuleType("bevfusion_enhanced"); '
              f'package.__path__ = [{str(repo / "projects/bevfusion_enhanced")!r}]; '
              'sys.modules["bevfusion_enhanced"] = package; '
              'from bevfusion_enhanced.synthetic.dataset import create_dataset; '
              f'create_dataset(out={str(tmp_path / "second")!r}, workers=1, **{small!r}); '
              'assert "torch" not in sys.modules')
    subprocess.run([sys.executable, '-c', script], check=True,
                   env={**os.environ, 'PYTHONHASHSEED': '7', 'OMP_NUM_THREADS': '2'})
    assert digests(tmp_path / 'first') == digests(tmp_path / 'second')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['first', 'second']


def test_an_existing_dataset_is_kept(tiny_settings: Options, tiny_dataset: Path,
                                     tmp_path: Path) -> None:
    before = (tiny_dataset / MANIFEST).stat().st_mtime_ns
    assert create_dataset(out=tiny_dataset, **tiny_settings) is False
    with pytest.raises(DataError, match=r'\(seed 3 instead of 4\); choose another') as caught:
        create_dataset(out=tiny_dataset, **{**tiny_settings, 'seed': 4})
    assert '\n' not in str(caught.value)
    assert (tiny_dataset / MANIFEST).stat().st_mtime_ns == before
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(DataError, match='is no synthetic dataset'):
        create_dataset(out=tmp_path, **tiny_settings)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


@pytest.mark.parametrize(('name', 'value'), [
    ('scenes', 1), ('scenes', 11), ('keyframes', 1), ('sweeps', 10), ('image_scale', 0.0),
    ('seed', -1), ('lidar_columns', 3), ('workers', 0)])
def test_settings_out_of_range_are_named(tiny_settings: Options, tmp_path: Path, name: str,
                                         value: float) -> None:
    with pytest.raises(ConfigError, match=f'^{name}: .* got {value}'):
        create_dataset(out=tmp_path / 'new', **{**tiny_settings, name: value})
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tiny_settings: Options, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError('disk full')
    monkeypatch.setattr('bevfusion_enhanced.synthetic.dataset.write_map_files', fail)
    with pytest.raises(OSError, match='disk full'):
        create_dataset(out=tmp_path / 'new', **tiny_settings)
    assert not list(tmp_path.iterdir())


def test_tool_has_the_defaults_of_the_function_and_answers_errors_in_a_line(
        repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.syspath_prepend(str(repo / 'tools'))
    tool = __import__('create_synthetic_nuscenes')
    options = vars(tool.parse_arguments([]))
    options.pop('out')
    defaults = inspect.signature(create_dataset).parameters
    assert options == {name: defaults[name].default for name in defaults if name != 'out'}
    monkeypatch.setattr(sys, 'argv', ['tool', '--out', str(tmp_path / 'new'), '--scenes', '1'])
    assert tool.main() == 2
    assert capsys.readouterr().err.startswith('error: scenes: must be 2')
