"""Detection by distance and by kind of scene."""
import copy
import json
import shutil
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.evaluation.detection_results import load_submission, score_submission
from bevfusion_enhanced.evaluation.nuscenes_detection_metric import NuScenesDetectionMetric
from bevfusion_enhanced.evaluation.rings import DEFAULT_RINGS

ERRORS = ('ATE', 'ASE', 'AOE', 'AVE', 'AAE')


@pytest.fixture(scope='module')
def root(mini_nuscenes, tmp_path_factory) -> Path:
    """The small dataset; the first two frames to be predicted are of a rainy night, the others of
    a day."""
    root = tmp_path_factory.mktemp('weather') / 'data'
    shutil.copytree(mini_nuscenes / 'v1.0-mini', root / 'v1.0-mini')
    for name in ('samples', 'sweeps', 'maps'):
        (root / name).symlink_to(mini_nuscenes / name)
    shutil.copy(mini_nuscenes / 'nuscenes_infos_val.pkl', root)
    edit(root, [('Night, rain', (0, 1)), ('Day, turn left', (2, 3))])
    return root


def edit(root: Path, scenes: list) -> None:
    """Make scenes of the frames at some places of the info file."""
    dataset = NuScenesMultiTaskDataset(data_root=str(root), test_mode=True,
                                       ann_file='nuscenes_infos_val.pkl')
    tables = {name: json.loads((root / 'v1.0-mini' / f'{name}.json').read_text())
              for name in ('scene', 'sample')}
    by_token = {sample['token']: sample for sample in tables['sample']}
    for number, (description, indices) in enumerate(scenes):
        tables['scene'].append({**tables['scene'][-1], 'token': f'weather{number}',
                                'description': description})
        for index in indices:
            by_token[dataset.get_data_info(index)['token']]['scene_token'] = f'weather{number}'
    for name, records in tables.items():
        (root / 'v1.0-mini' / f'{name}.json').write_text(json.dumps(records))


@pytest.fixture(scope='module')
def samples(root) -> List[dict]:
    """The truth, moved and scored at random, without a part of it."""
    dataset = NuScenesMultiTaskDataset(data_root=str(root), test_mode=True,
                                       ann_file='nuscenes_infos_val.pkl')
    rng = np.random.default_rng(0)
    found = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        boxes = info['ann_info']['gt_bboxes_3d'].tensor.clone()
        boxes[:, :2] += torch.from_numpy(rng.normal(size=(len(boxes), 2)) * 0.5).float()
        kept = rng.random(len(boxes)) < 0.8
        found.append(dict(sample_idx=index, token=info['token'], pred_instances_3d=dict(
            bboxes_3d=LiDARInstance3DBoxes(boxes[kept], box_dim=9),
            scores_3d=torch.from_numpy(rng.permutation(len(boxes)) / 1000 + 0.1)[kept].float(),
            labels_3d=torch.from_numpy(info['ann_info']['gt_labels_3d'])[kept])))
    return found


def evaluate(root: Path, samples: List[dict], **settings) -> Dict[str, float]:
    metric = NuScenesDetectionMetric(data_root=str(root), ann_file='nuscenes_infos_val.pkl',
                                     **settings)
    metric.dataset_meta = NuScenesMultiTaskDataset.METAINFO
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def present(scores: Dict[str, float], part: str) -> List[str]:
    return [name.split('/')[2] for name in scores
            if name.startswith(f'object/{part}/') and name.endswith('/AP') and '/mean/' not in name]


@pytest.mark.parametrize('kind, indices', [('night', (0, 1)), ('rain', (0, 1)), ('day', (2, 3))])
def test_a_kind_of_scene_scores_what_its_samples_score_alone(root, samples, kind, indices):
    whole = evaluate(root, samples)
    alone = evaluate(root, [samples[index] for index in indices])
    classes = present(whole, kind)
    assert 4 < len(classes) <= 10
    for name in classes:
        assert whole[f'object/{kind}/{name}/AP'] == alone[f'object/{name}/AP']
    mean = np.mean([alone[f'object/{name}/AP'] for name in classes])
    errors = {error: np.mean([alone[f'object/{name}/{error}'] for name in classes
                              if f'object/{name}/{error}' in alone]) for error in ERRORS}
    assert 0 < mean < 1 and whole[f'object/{kind}/mean/AP'] == pytest.approx(mean)
    for error, value in errors.items():
        assert whole[f'object/{kind}/mean/{error}'] == pytest.approx(value)
    score = (5 * mean + sum(max(0, 1 - value) for value in errors.values())) / 10
    assert whole[f'object/{kind}/mean/NDS'] == pytest.approx(score)


def test_kinds_differ_and_are_not_the_whole(root, samples):
    scores = evaluate(root, samples)
    assert len({scores['object/mAP'], scores['object/day/mean/AP'],
                scores['object/night/mean/AP']}) == 3
    assert scores['object/night/mean/AP'] == scores['object/rain/mean/AP']


def test_what_does_not_occur_is_not_scored(root, samples, mini_nuscenes):
    assert not any('/night/' in name or '/rain/' in name for name in evaluate(root, samples[2:]))
    descriptions = {scene['description'].split(',')[0] for scene in json.loads(
        (mini_nuscenes / 'v1.0-mini/scene.json').read_text())}
    kinds = {name.split('/')[1] for name in evaluate(mini_nuscenes, samples)
             if name.endswith('mean/AP') and not name.split('/')[1][0].isdigit()}
    assert kinds <= {description.lower() for description in descriptions} and len(kinds) == 1


def test_only_cones_have_no_score_of_all_errors(root, samples, tmp_path, recwarn):
    """Nor is anybody told of means of nothing; absent classes do not count."""
    evaluate(root, samples[:2], jsonfile_prefix=str(tmp_path))
    about = load_submission(tmp_path / 'results_nusc.json')
    annotations = root / 'v1.0-mini' / 'sample_annotation.json'
    instances = {instance['token']: instance['category_token'] for instance in json.loads(
        (root / 'v1.0-mini/instance.json').read_text())}
    cone, = (category['token'] for category in json.loads(
        (root / 'v1.0-mini/category.json').read_text())
        if category['name'] == 'movable_object.trafficcone')
    records = json.loads(annotations.read_text())
    kept = annotations.read_text()
    alone = [record for record in records if instances[record['instance_token']] == cone]
    try:
        annotations.write_text(json.dumps([{**record, 'prev': '', 'next': ''}
                                           for record in alone]))
        scores = score_submission(about.boxes, data_root=str(root), version='v1.0-mini',
                                  eval_version='detection_cvpr_2019', rings=()).metrics
    finally:
        annotations.write_text(kept)
    night = {name.split('/', 1)[1] for name in scores if name.startswith('night/')}
    assert night == {'traffic_cone/AP', 'mean/AP', 'mean/ATE', 'mean/ASE'}
    assert scores['night/mean/AP'] == scores['traffic_cone/AP'] > 0
    assert not [warning for warning in recwarn if 'empty slice' in str(warning.message)]


def test_the_summary_holds_the_parts(root, samples, tmp_path):
    scores = evaluate(root, samples, jsonfile_prefix=str(tmp_path))
    kept = json.loads((tmp_path / 'metrics_summary.json').read_text())
    assert kept['scene_scores'].keys() == {'day', 'night', 'rain'}
    for name in ('mean/NDS', 'mean/AVE', 'car/AP'):
        assert kept['scene_scores']['night'][name] == scores[f'object/night/{name}']
    assert kept['ring_aps']['0-15m']['mean'] == scores['object/0-15m/mean/AP']


def distance_from_ego(root: Path, sample: dict) -> np.ndarray:
    info = NuScenesMultiTaskDataset(data_root=str(root), test_mode=True,
                                    ann_file='nuscenes_infos_val.pkl').get_data_info(
                                        sample['sample_idx'])
    centers = sample['pred_instances_3d']['bboxes_3d'].gravity_center.numpy()
    lidar2ego = np.array(info['lidar_points']['lidar2ego'])
    return np.hypot(*(centers @ lidar2ego[:3, :3].T + lidar2ego[:3, 3])[:, :2].T)


@pytest.mark.parametrize('near, far', DEFAULT_RINGS)
def test_a_ring_sees_only_what_lies_in_it(root, samples, near, far):
    """Boxes outside of it may go; without those inside of it nothing is found."""
    inside, outside = copy.deepcopy(samples), copy.deepcopy(samples)
    for one, other in zip(inside, outside):
        gap = distance_from_ego(root, one)
        within = torch.from_numpy((gap >= near) & (gap < far))
        one['pred_instances_3d'] = {key: value[within]
                                    for key, value in one['pred_instances_3d'].items()}
        other['pred_instances_3d'] = {key: value[~within]
                                      for key, value in other['pred_instances_3d'].items()}
    ring = f'{near}-{far}m'
    whole, kept, lost = (evaluate(root, found) for found in (samples, inside, outside))
    classes = present(whole, ring)
    assert len(classes) > 2 and 0 < whole[f'object/{ring}/mean/AP'] < 1
    for name in (*classes, 'mean'):
        assert kept[f'object/{ring}/{name}/AP'] == whole[f'object/{ring}/{name}/AP']
        assert lost[f'object/{ring}/{name}/AP'] == 0
    assert kept['object/mAP'] < whole['object/mAP']
