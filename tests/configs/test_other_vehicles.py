"""Vehicles with other cameras work by config: fewer, in another order, of another resolution."""
import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope

from bevfusion_enhanced.datasets.info_files import read_info_file
from bevfusion_enhanced.datasets.nuscenes_infos import create_infos
from bevfusion_enhanced.engine.configuration.tta import map_anchors, tta_model, tta_pipeline
from bevfusion_enhanced.models.calibration import Calibration

REPO = Path(__file__).resolve().parents[2]
RENAMED = dict(CAM_FRONT='front_wide', CAM_BACK='rear', CAM_FRONT_LEFT='left',
               CAM_FRONT_RIGHT='right')
FOUR = ['CAM_BACK_LEFT', 'CAM_FRONT', 'CAM_BACK', 'CAM_FRONT_RIGHT']


def config_of(root: Path, *, cameras=None, image_size=None) -> Config:
    """The mini config over a dataset, changed by the settings that a user would change."""
    config = Config.fromfile(REPO / 'configs/mini/phase4a_task_gca.py')
    dataset = config.test_dataloader.dataset
    dataset.data_root = f'{root}/'
    for step in dataset.pipeline:
        if step.type == 'LoadBEVMapMasks':
            step.data_root = f'{root}/'
        elif step.type == 'ImageAug3D':
            step.resize_lim = [1.1, 1.1]
            if image_size:
                step.update(final_dim=image_size, resize_lim=[image_size[1] / 160] * 2)
        elif step.type == 'LoadMultiViewImages' and cameras:
            step.cameras = cameras
    if image_size:
        config.model.encoders.camera.vtransform.update(
            image_size=image_size, feature_size=[side // 8 for side in image_size])
    return config


def predict(config: Config, index: int = 1, weights=None):
    """The cameras' BEV map and the prediction of a sample, by untrained or given weights.

    The map is scaled to a largest value of 1: that of untrained weights is tiny.
    """
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    if weights is not None:
        model.load_state_dict(weights)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([dataset[index]]), training=False)
    with torch.no_grad():
        bev = model.encoders['camera'](
            batch['inputs']['imgs'], batch['inputs']['points'],
            Calibration.from_samples(batch['data_samples']))
        sample = model(**batch, mode='predict')[0]
    return bev / bev.abs().max(), sample, model.state_dict()


def assert_well_formed(sample) -> None:
    assert sample.pred_bev_map.probs.shape == (6, 80, 80)
    assert sample.pred_bev_map.probs.isfinite().all()
    assert sample.pred_instances_3d.bboxes_3d.tensor.isfinite().all()
    assert len(sample.pred_instances_3d.scores_3d)


@pytest.fixture(scope='module')
def six(mini_nuscenes):
    return predict(config_of(mini_nuscenes))


def test_the_order_of_the_cameras_does_not_matter(mini_nuscenes, six):
    names = list(read_info_file(mini_nuscenes / 'nuscenes_infos_val.pkl')
                 ['data_list'][1]['images'])
    bev, sample, _ = predict(config_of(mini_nuscenes, cameras=names[::-1]))
    assert sample.camera_names == names[::-1]
    assert (bev - six[0]).abs().max() < 1e-3


def test_four_cameras_with_the_weights_of_six(mini_nuscenes, six):
    bev, sample, _ = predict(config_of(mini_nuscenes, cameras=FOUR), weights=six[2])
    assert sample.camera_names == FOUR and sample.lidar2img.shape == (4, 4, 4)
    assert_well_formed(sample)
    assert (bev - six[0]).abs().max() > 0.1  # the other two were seen


def test_another_resolution_with_the_same_weights(mini_nuscenes, six):
    config = config_of(mini_nuscenes, cameras=FOUR, image_size=[96, 160])
    _, sample, _ = predict(config, weights=six[2])
    assert_well_formed(sample)


@pytest.fixture(scope='module')
def other_vehicle(mini_nuscenes, tmp_path_factory) -> Path:
    """A dataset of a vehicle with four cameras of other names, each half as large as nuScenes'."""
    root = tmp_path_factory.mktemp('vehicle') / 'data'
    shutil.copytree(mini_nuscenes, root, ignore=shutil.ignore_patterns('*.pkl', 'CAM_BACK_*'))
    tables = root / 'v1.0-mini'
    sensors = json.loads((tables / 'sensor.json').read_text())
    gone = {sensor['token'] for sensor in sensors if sensor['channel'].startswith('CAM_BACK_')}
    calibrations = json.loads((tables / 'calibrated_sensor.json').read_text())
    lost = {record['token'] for record in calibrations if record['sensor_token'] in gone}
    for record in calibrations:
        record['camera_intrinsic'] = [[value / 2 for value in row] for row in
                                      record['camera_intrinsic'][:2]] + \
            record['camera_intrinsic'][2:]
    data = [record for record in json.loads((tables / 'sample_data.json').read_text())
            if record['calibrated_sensor_token'] not in lost]
    for record in data:
        folder, channel, name = record['filename'].split('/')
        if channel in RENAMED:
            image = cv2.imread(str(root / record['filename']))
            record['filename'] = f'{folder}/{RENAMED[channel]}/{name}'
            record['height'], record['width'] = record['height'] // 2, record['width'] // 2
            (root / record['filename']).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(root / record['filename']),
                        cv2.resize(image, (record['width'], record['height'])))
    for sensor in sensors:
        sensor['channel'] = RENAMED.get(sensor['channel'], sensor['channel'])
    kept = dict(sensor=[sensor for sensor in sensors if sensor['token'] not in gone],
                calibrated_sensor=[record for record in calibrations
                                   if record['token'] not in lost], sample_data=data)
    for name, records in kept.items():
        (tables / f'{name}.json').write_text(json.dumps(records))
    create_infos(root_path=root, version='v1.0-mini')
    return root


def test_another_vehicle_from_its_tables_to_its_predictions(other_vehicle, six):
    info = read_info_file(other_vehicle / 'nuscenes_infos_val.pkl')['data_list'][1]
    assert list(info['images']) == sorted(RENAMED.values())
    assert {(view['height'], view['width']) for view in info['images'].values()} == {(45, 80)}
    order = ['right', 'front_wide', 'left', 'rear']
    config = config_of(other_vehicle, cameras=order)
    config.test_dataloader.dataset.data_prefix = dict(
        pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP',
        **{name: f'samples/{name}' for name in order})
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == 'ImageAug3D':
            step.resize_lim = [2.2, 2.2]
    _, sample, _ = predict(config, weights=six[2])
    assert sample.camera_names == order
    assert_well_formed(sample)


def test_the_config_with_views_says_what_tta_would_derive():
    config = Config.fromfile(REPO / 'configs/phase4a_tta.py')
    pipeline = config.test_dataloader.dataset.pipeline
    assert tta_pipeline(pipeline) == config.tta_pipeline
    derived = tta_model(config.model, pipeline)
    assert derived['map_scope'] == config.tta_model.map_scope
    assert derived['map_anchors'] == config.tta_model.map_anchors
    assert map_anchors(['drivable_area', 'divider'], 'cell_center') == [0.5, 0.5]
