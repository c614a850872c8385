from pathlib import Path

import cv2
import numpy as np
import pytest

from bevfusion_enhanced.datasets.transforms.loading import LoadMultiViewImages, LoadPointsWithSweeps
from bevfusion_enhanced.errors import ConfigError, DataError


def write_points(path: Path, points: np.ndarray) -> str:
    points.astype('<f4').tofile(path)
    return str(path)


def scan(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(2, 40, (count, 3)), rng.integers(0, 255, (count, 1)),
                           rng.integers(0, 32, (count, 1))], axis=1)


def rigid(yaw: float, x: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    matrix[0, 3] = x
    return matrix


@pytest.fixture
def sample(tmp_path) -> dict:
    """A key frame of 50 points and three sweeps of 40, which see one static world."""
    world = scan(90, seed=0)
    sweeps = []
    for index, (yaw, x) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 1.5)]):
        lidar2sensor = rigid(yaw, x)
        points = world[50:].copy()
        points[:, :3] = points[:, :3] @ lidar2sensor[:3, :3].T + lidar2sensor[:3, 3]
        path = write_points(tmp_path / f'sweep{index}.bin', points)
        sweeps.append(dict(timestamp=100.0 - 0.05 * (index + 1),
                           lidar_points=dict(lidar_path=path, lidar2sensor=lidar2sensor.tolist())))
    path = write_points(tmp_path / 'key.bin', world[:50])
    return dict(token='t0', timestamp=100.0, lidar_points=dict(lidar_path=path),
                lidar_sweeps=sweeps, world=world)


def load(sample: dict, **settings) -> np.ndarray:
    return LoadPointsWithSweeps(**settings)(dict(sample))['points'].tensor.numpy()


def test_sweeps_come_into_the_key_frame(sample):
    points = load(sample, sweeps_num=3)
    assert points.shape == (50 + 3 * 40, 5) and points.dtype == np.float32
    for index in range(3):
        part = points[50 + 40 * index:90 + 40 * index]
        np.testing.assert_allclose(part[:, :3], sample['world'][50:, :3], atol=1e-4)
        np.testing.assert_allclose(part[:, 4], 0.05 * (index + 1), atol=1e-5)
    np.testing.assert_allclose(points[:50, :4], sample['world'][:50, :4], rtol=1e-6)
    assert not points[:50, 4].any()


def test_the_newest_sweeps_are_taken_unless_random(sample):
    lags = np.unique(load(sample, sweeps_num=2)[50:, 4].round(3))
    np.testing.assert_allclose(lags, [0.05, 0.1], atol=1e-3)
    np.random.seed(0)
    drawn = {tuple(np.unique(load(sample, sweeps_num=2, random_sweeps=True)[50:, 4].round(2)))
             for _ in range(20)}
    assert len(drawn) == 3


def test_close_points_of_sweeps_only_are_dropped(sample, tmp_path):
    near = np.array([[0.5, -0.9, 1, 5, 0], [0.5, 1.1, 1, 5, 0], [-0.99, 0.99, 3, 5, 0]])
    sample['lidar_points'] = dict(lidar_path=write_points(tmp_path / 'near.bin', near))
    sample['lidar_sweeps'] = [dict(timestamp=99.9, lidar_points=dict(
        lidar_path=sample['lidar_points']['lidar_path'], lidar2sensor=rigid(0, -5).tolist()))]
    points = load(sample, sweeps_num=1, remove_close=1.0)
    assert len(points) == 4
    np.testing.assert_allclose(points[3, :3], [5.5, 1.1, 1], atol=1e-5)


def test_missing_sweeps_can_be_padded(sample):
    del sample['lidar_sweeps']
    assert len(load(sample, sweeps_num=2)) == 50
    assert len(load(sample, sweeps_num=2, pad_empty_sweeps=True)) == 150
    assert load(sample, use_dim=4).shape == (50, 4)


@pytest.mark.parametrize('content, message', [
    (b'', r'LiDAR scan of sample t0 is empty: .*key\.bin'),
    (bytes(1990), r'LiDAR scan of sample t0 is cut short: .*key\.bin has 1990 bytes'),
    (None, r'cannot read the LiDAR scan of sample t0: .*key\.bin: No such file')])
def test_broken_scans_name_file_and_sample(sample, content, message):
    path = Path(sample['lidar_points']['lidar_path'])
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(sample)
    assert '\n' not in str(error.value)


def test_broken_sweep_names_file_and_sample(sample):
    Path(sample['lidar_sweeps'][1]['lidar_points']['lidar_path']).write_bytes(bytes(21))
    with pytest.raises(DataError, match=r'sample t0 .*sweep1\.bin'):
        load(sample, sweeps_num=3)
    assert len(load(sample, sweeps_num=1)) == 90  # not read, not missed


def test_impossible_columns():
    with pytest.raises(ConfigError, match='use_dim'):
        LoadPointsWithSweeps(load_dim=5, use_dim=6)


@pytest.fixture
def views(tmp_path) -> dict:
    """Two cameras: red above green, and blue; 100 x 161 pixels."""
    images = {}
    for index, name in enumerate(('CAM_A', 'CAM_B')):
        image = np.zeros((100, 161, 3), np.uint8)
        image[:50, :, 0 if index == 0 else 2] = 255
        image[50:, :, 1 if index == 0 else 2] = 255
        path = tmp_path / f'{name}.jpg'
        cv2.imwrite(str(path), image[..., ::-1])
        images[name] = dict(img_path=str(path), lidar2cam=rigid(0.3, index).tolist(),
                            cam2img=[[90.0, 0, 80], [0, 90, 50], [0, 0, 1]])
    return dict(token='t0', images=images)


def test_images_are_rgb_with_their_matrices(views):
    results = LoadMultiViewImages()(views)
    assert [image.shape for image in results['img']] == [(100, 161, 3)] * 2
    assert results['img'][0][20, 80].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert results['img'][0][80, 80].tolist() == pytest.approx([0, 255, 0], abs=4)
    assert results['img'][1][50, 80].tolist() == pytest.approx([0, 0, 255], abs=4)
    for name in ('cam2img', 'lidar2cam', 'cam2lidar', 'lidar2img', 'img_aug_matrix'):
        assert results[name].shape == (2, 4, 4) and results[name].dtype == np.float32
    np.testing.assert_allclose(results['cam2lidar'] @ results['lidar2cam'],
                               np.tile(np.eye(4), (2, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(results['lidar2img'], results['cam2img'] @ results['lidar2cam'],
                               rtol=1e-6)
    np.testing.assert_array_equal(results['img_aug_matrix'][0], np.eye(4))
    np.testing.assert_array_equal(results['image_sizes'], [[100, 161]] * 2)


@pytest.mark.parametrize('reduction, shape', [(2, (50, 81, 3)), (4, (25, 41, 3))])
def test_reduced_decoding_keeps_the_true_size(views, reduction, shape):
    results = LoadMultiViewImages(reduction=reduction)(views)
    assert results['img'][0].shape == shape
    np.testing.assert_array_equal(results['image_sizes'], [[100, 161]] * 2)
    assert results['img_aug_matrix'][1, 0, 0] == pytest.approx(1 / reduction)


def test_cameras_can_be_chosen_and_ordered(views):
    results = LoadMultiViewImages(cameras=['CAM_B'])(views)
    assert len(results['img']) == 1 and results['img_path'][0].endswith('CAM_B.jpg')
    with pytest.raises(ConfigError, match=r"no camera \['CAM_C'\]; it has"):
        LoadMultiViewImages(cameras=['CAM_C'])(views)
    with pytest.raises(ConfigError, match='reduction is 3'):
        LoadMultiViewImages(reduction=3)


@pytest.mark.parametrize('spoil, message', [
    (lambda path: path.write_bytes(b'no image'), r'cannot decode the image of sample t0: .*CAM_B'),
    (lambda path: path.write_bytes(b''), r'cannot decode the image of sample t0: .*CAM_B'),
    (lambda path: path.write_bytes(path.read_bytes()[:-200]), r'cannot decode .* t0: .*CAM_B'),
    (lambda path: path.unlink(), r'cannot read the image of sample t0: .*CAM_B.*No such file')])
def test_broken_images_name_file_and_sample(views, spoil, message):
    spoil(Path(views['images']['CAM_B']['img_path']))
    with pytest.raises(DataError, match=message) as error:
        LoadMultiViewImages()(views)
    assert '\n' not in str(error.value)
