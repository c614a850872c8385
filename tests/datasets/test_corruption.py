"""Sensors that fail: what is lost is lost, what stays is untouched, and draws repeat."""
import numpy as np
import pytest
from mmdet3d.registry import TRANSFORMS
from mmengine.config import Config

from bevfusion_enhanced.datasets.lidar_beams import (
    LOWEST_DEG,
    STEP_DEG,
    beam_of_points,
    reduce_beams,
)
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.datasets.transforms.loading import (
    LoadMultiViewImages,
    LoadPointsWithSweeps,
)
from bevfusion_enhanced.engine.configuration.corruption import CORRUPTIONS, use_corruptions
from bevfusion_enhanced.errors import ConfigError, DataError

MATRICES = ('cam2img', 'lidar2cam', 'cam2lidar', 'lidar2img', 'img_aug_matrix')


@pytest.fixture(scope='module')
def dataset(mini_nuscenes):
    return NuScenesMultiTaskDataset(data_root=str(mini_nuscenes), test_mode=True,
                                    ann_file='nuscenes_infos_val.pkl')


@pytest.fixture
def sample(dataset):
    return dataset.get_data_info(2)


@pytest.fixture
def loaded(sample):
    return LoadMultiViewImages()(sample)


def step(name: str, **settings):
    return TRANSFORMS.build(dict(type=name, **settings))


def test_a_lost_camera_is_black_and_keeps_its_calibration(loaded):
    before = {name: loaded[name].copy() for name in MATRICES}
    images = [image.copy() for image in loaded['img']]
    after = step('DropCameras', cameras=['CAM_BACK', 'CAM_FRONT'])(loaded)
    names = after['camera_names']
    for index, name in enumerate(names):
        if name in ('CAM_BACK', 'CAM_FRONT'):
            assert not after['img'][index].any() and images[index].any()
        else:
            np.testing.assert_array_equal(after['img'][index], images[index])
    for name in MATRICES:
        np.testing.assert_array_equal(after[name], before[name])


def test_a_removed_camera_takes_its_calibration_with_it(loaded):
    after = step('DropCameras', cameras=['CAM_FRONT_RIGHT'], remove=True)(loaded)
    kept = [0, 2, 3, 4, 5]
    assert len(after['img']) == len(after['img_path']) == 5
    assert 'CAM_FRONT_RIGHT' not in after['camera_names']
    for name in MATRICES:
        np.testing.assert_array_equal(after[name], loaded[name][kept])
    with pytest.raises(ConfigError, match='no camera would be left'):
        step('DropCameras', count=6, remove=True)(loaded)


def test_the_lost_ones_follow_from_the_sample(loaded):
    def lost(token: str, seed: int = 0) -> tuple:
        after = step('DropCameras', count=2, seed=seed)({**loaded, 'token': token})
        return tuple(index for index, image in enumerate(after['img']) if not image.any())

    found = [lost(f'token {number}') for number in range(20)]
    assert all(len(one) == 2 for one in found) and len(set(found)) > 5
    assert found == [lost(f'token {number}') for number in range(20)]
    assert found != [lost(f'token {number}', seed=1) for number in range(20)]


@pytest.mark.parametrize('settings', [dict(), dict(cameras=['CAM_FRONT'], count=1),
                                      dict(cameras=['CAM_TOP']), dict(count=7)])
def test_cameras_that_cannot_be_lost(loaded, settings):
    with pytest.raises(ConfigError, match='DropCameras'):
        step('DropCameras', **settings)(loaded)


def scan() -> np.ndarray:
    """Two thousand points of a sensor with 32 beams, with their rings."""
    rng = np.random.default_rng(0)
    ring = rng.integers(0, 32, 2000)
    elevation = np.deg2rad(LOWEST_DEG + STEP_DEG * ring)
    azimuth, distance = rng.uniform(0, 2 * np.pi, 2000), rng.uniform(3, 60, 2000)
    flat = distance * np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation),
                     rng.uniform(0, 255, 2000), ring], axis=1).astype(np.float32)


@pytest.mark.parametrize('beams', [16, 4, 1])
def test_beams_by_ring(beams):
    points = scan()
    kept = reduce_beams(points, beams)
    assert len(np.unique(kept[:, 4])) == beams
    assert 0.7 < len(kept) / (len(points) * beams / 32) < 1.3
    assert np.ptp(np.diff(np.unique(kept[:, 4]))) == 0 if beams > 1 else True


def test_without_rings_the_elevation_tells_the_beam():
    points = scan()
    rings = points[:, 4].astype(int)
    for column in (0.0, 0.37):  # no rings: all zero, or something else
        other = points.copy()
        other[:, 4] = column
        np.testing.assert_array_equal(beam_of_points(other), rings)


def test_rings_are_believed_before_elevations():
    points = scan()
    points[:, 4] = points[::-1, 4].copy()
    np.testing.assert_array_equal(beam_of_points(points), points[:, 4])


def test_every_scan_of_a_sample_has_fewer_beams(sample):
    full = LoadPointsWithSweeps(sweeps_num=2)(sample)['points'].tensor.numpy()
    few = LoadPointsWithSweeps(sweeps_num=2, beams=4)(sample)['points'].tensor.numpy()
    for lag in np.unique(full[:, 4]):
        share = (few[:, 4] == lag).sum() / (full[:, 4] == lag).sum()
        assert 0.02 < share < 0.3
    rows = {row.tobytes() for row in full}
    assert all(row.tobytes() in rows for row in few)
    with pytest.raises(ConfigError, match='beams is 5'):
        LoadPointsWithSweeps(beams=5)


def test_late_points_lie_where_the_sensor_was(sample):
    """They are the sweep's own, unmoved, and count as of now."""
    newest, older = sample['lidar_sweeps'][:2]
    raw = np.fromfile(newest['lidar_points']['lidar_path'], '<f4').reshape(-1, 5)
    late = step('DelayPoints')(sample)
    points = LoadPointsWithSweeps(sweeps_num=0)(late)['points'].tensor.numpy()
    np.testing.assert_array_equal(points[:, :4], raw[:, :4])
    assert not points[:, 4].any()
    assert sample['lidar_points']['lidar_path'] != late['lidar_points']['lidar_path']

    older_in_key = LoadPointsWithSweeps(sweeps_num=2)(sample)['points'].tensor.numpy()
    older_late = LoadPointsWithSweeps(sweeps_num=1)(late)['points'].tensor.numpy()
    lag = sample['timestamp'] - older['timestamp']
    expected = older_in_key[np.isclose(older_in_key[:, 4], lag, atol=1e-4)]
    newest2key = np.linalg.inv(newest['lidar_points']['lidar2sensor'])
    found = older_late[older_late[:, 4] > 0]
    np.testing.assert_allclose(found[:, :3] @ newest2key[:3, :3].T + newest2key[:3, 3],
                               expected[:, :3], atol=1e-3)
    np.testing.assert_allclose(found[:, 4], newest['timestamp'] - older['timestamp'], atol=1e-3)


def test_the_first_sample_of_a_scene_has_nothing_before_it(dataset):
    first = dataset.get_data_info(0)
    assert step('DelayPoints')(first) is first
    paths = [view['img_path'] for view in step('DelayImages')(first)['images'].values()]
    assert paths == [view['img_path'] for view in first['images'].values()]


def test_late_images_are_the_ones_before(dataset):
    """The simulated cameras have key frames only, so the image before is that of the key frame."""
    before, now = dataset.get_data_info(1), dataset.get_data_info(2)
    late = step('DelayImages', cameras=['CAM_FRONT'])(now)
    assert late['images']['CAM_FRONT']['img_path'] == before['images']['CAM_FRONT']['img_path']
    assert late['images']['CAM_BACK'] is now['images']['CAM_BACK']
    np.testing.assert_array_equal(LoadMultiViewImages()(late)['img'][0],
                                  LoadMultiViewImages()(before)['img'][0])
    np.testing.assert_array_equal(late['images']['CAM_FRONT']['lidar2cam'],
                                  now['images']['CAM_FRONT']['lidar2cam'])


def test_info_files_without_the_images_before(sample):
    for view in sample['images'].values():
        del view['previous']
    with pytest.raises(DataError, match='make it again with tools/create_data.py'):
        step('DelayImages')(sample)


def test_calibration_noise_is_of_the_size_asked_for(loaded):
    noise = step('CalibrationNoise', rotation_deg=2.0, translation_cm=10.0)
    turns, shifts = [], []
    for number in range(500):
        matrix = noise.noise(f'camera {number}')
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
        turns.append(np.rad2deg(np.arccos((np.trace(matrix[:3, :3]) - 1) / 2)))
        shifts.append(matrix[:3, 3])
    assert np.sqrt(np.mean(np.square(turns)) / 3) == pytest.approx(2.0, rel=0.1)
    assert np.std(shifts) == pytest.approx(0.10, rel=0.1)


def test_calibration_noise_is_consistent_and_repeats(loaded):
    once, again, other = (step('CalibrationNoise', rotation_deg=1, translation_cm=5, seed=seed)(
        loaded) for seed in (0, 0, 1))
    for name in ('cam2lidar', 'lidar2cam', 'lidar2img'):
        np.testing.assert_array_equal(once[name], again[name])
        assert np.abs(once[name] - other[name]).max() > 1e-3
    np.testing.assert_allclose(once['cam2lidar'] @ once['lidar2cam'], np.tile(np.eye(4), (6, 1, 1)),
                               atol=1e-5)
    np.testing.assert_allclose(once['lidar2img'], once['cam2img'] @ once['lidar2cam'], rtol=1e-4,
                               atol=1e-2)
    assert len({matrix.tobytes() for matrix in np.linalg.inv(loaded['cam2lidar'])
                @ once['cam2lidar']}) == 6  # each camera has its own
    none = step('CalibrationNoise', rotation_deg=0, translation_cm=0)(loaded)
    np.testing.assert_allclose(none['lidar2img'], loaded['lidar2img'], rtol=1e-4, atol=1e-2)


def config(root, *corruptions: str) -> Config:
    made = Config(dict(test_dataloader=dict(dataset=dict(
        data_root=str(root), pipeline=[
            dict(type='LoadMultiViewImages'), dict(type='LoadPointsWithSweeps', sweeps_num=1),
            dict(type='PackBEVFusionInputs')]))))
    use_corruptions(made, corruptions)
    return made


@pytest.mark.parametrize('text', ['cameras', 'cameras=2', 'cameras=CAM_FRONT+CAM_BACK',
                                  'cameras=1:removed', 'beams', 'beams=4', 'delay_points',
                                  'delay_images', 'calibration', 'calibration=0.5:2'])
def test_each_flag_changes_what_the_model_sees(mini_nuscenes, text):
    """And the pipeline still runs to its end."""
    def packed(*corruptions: str) -> dict:
        pipeline = config(mini_nuscenes, *corruptions).test_dataloader.dataset.pipeline
        dataset = NuScenesMultiTaskDataset(
            data_root=str(mini_nuscenes), ann_file='nuscenes_infos_val.pkl', test_mode=True,
            pipeline=[step.to_dict() for step in pipeline])
        return dataset[2]

    plain, corrupt = packed(), packed(text)
    same = [plain['inputs']['img'].shape == corrupt['inputs']['img'].shape
            and bool((plain['inputs']['img'] == corrupt['inputs']['img']).all()),
            plain['inputs']['points'].shape == corrupt['inputs']['points'].shape
            and bool((plain['inputs']['points'] == corrupt['inputs']['points']).all()),
            np.array_equal(plain['data_samples'].lidar2img, corrupt['data_samples'].lidar2img)]
    name = text.partition('=')[0]
    changed = dict(cameras=0, beams=1, delay_points=1, delay_images=0, calibration=2)[name]
    assert not same[changed]
    if 'removed' not in text:
        assert sum(same) == 2


def test_every_corruption_is_tested():
    tested = {'cameras', 'beams', 'delay_points', 'delay_images', 'calibration'}
    assert set(CORRUPTIONS) == tested


@pytest.mark.parametrize('text, says', [
    ('fog', 'unknown; known are cameras, beams'), ('beams=5', 'beams is 5'),
    ('beams=few', '--corrupt beams=few'), ('calibration=a', '--corrupt calibration=a'),
    ('delay_points=3', 'one sweep'), ('cameras=1:gone', "'gone' is unknown")])
def test_flags_that_are_wrong(mini_nuscenes, text, says):
    with pytest.raises(ConfigError, match=says):
        config(mini_nuscenes, text)


def test_a_pipeline_without_the_sensor():
    made = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        dict(type='LoadMultiViewImages')]))))
    with pytest.raises(ConfigError, match='has no LoadPointsWithSweeps'):
        use_corruptions(made, ['beams=4'])
