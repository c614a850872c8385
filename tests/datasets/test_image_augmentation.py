import cv2
import numpy as np
import pytest

from bevfusion_enhanced.datasets.transforms.image_augmentation import (
    ImageAffine,
    ImageAug3D,
    resample,
)
from bevfusion_enhanced.errors import ConfigError

SIZE = (225, 400)


def spots(centres: np.ndarray, size=SIZE, radius: float = 6.0) -> np.ndarray:
    """An image with a smooth bright spot at each (u, v), pixel (0, 0) covering [0, 1) x [0, 1)."""
    v, u = np.mgrid[:size[0], :size[1]] + 0.5
    image = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * radius ** 2)) for x, y in centres)
    return np.repeat((255 * image)[..., None], 3, axis=2).astype(np.uint8)


def centre_of_mass(image: np.ndarray) -> np.ndarray:
    weights = image[..., 0].astype(float)
    v, u = np.mgrid[:weights.shape[0], :weights.shape[1]] + 0.5
    return np.array([(u * weights).sum(), (v * weights).sum()]) / weights.sum()


def results_of(image: np.ndarray, reduction: int = 1) -> dict:
    size = np.array([image.shape[:2]]) * reduction
    matrix = np.diag([1 / reduction, 1 / reduction, 1, 1]).astype(np.float32)
    return dict(img=[image], image_sizes=size, img_aug_matrix=matrix[None])


AFFINES = [ImageAffine(resize=1.0, left=0, top=0), ImageAffine(resize=0.5, left=20, top=10),
           ImageAffine(resize=0.7, left=30, top=40, flip=True),
           ImageAffine(resize=0.9, left=60, top=50, rotate=5.0),
           ImageAffine(resize=0.31, left=-20, top=-10, flip=True, rotate=-7.0)]


@pytest.mark.parametrize('affine', AFFINES)
@pytest.mark.parametrize('spot', [(200.0, 120.0), (150.5, 100.25)])
def test_the_matrix_says_where_a_spot_went(affine, spot):
    matrix = affine.matrix(240, 400)
    image = resample(spots([spot]), matrix, (240, 400))
    expected = (matrix @ [*spot, 1])[:2]
    np.testing.assert_allclose(centre_of_mass(image), expected, atol=0.1)


def test_one_affine_equals_the_steps_it_stands_for():
    image = spots([(150.0, 90.0), (300.0, 160.0), (60.0, 180.0)])
    affine = ImageAffine(resize=0.5, left=12, top=20, flip=True)
    ours = resample(image, affine.matrix(64, 160), (64, 160))
    shrunk = cv2.resize(image, (200, 112), interpolation=cv2.INTER_AREA)
    steps = shrunk[20:84, 12:172][:, ::-1]
    assert np.abs(ours.astype(int) - steps).mean() < 2


def test_rotation_is_counter_clockwise_as_seen():
    matrix = ImageAffine(resize=1, left=0, top=0, rotate=90).matrix(100, 100)
    np.testing.assert_allclose(matrix @ [100, 50, 1], [50, 0, 1], atol=1e-9)  # right goes up


def test_evaluation_takes_the_middle_of_the_ranges():
    transform = ImageAug3D(final_dim=(64, 176), resize_lim=(0.4, 0.56), bot_pct_lim=(0, 0))
    results = transform(results_of(spots([(200.0, 120.0)])))
    assert results['img'][0].shape == (64, 176, 3) and results['img'][0].dtype == np.uint8
    expected = np.eye(4)
    expected[0, 0] = expected[1, 1] = 0.48
    expected[:2, 3] = -8, -44  # (192 - 176) / 2; 108 - 64
    np.testing.assert_allclose(results['img_aug_matrix'][0], expected, atol=1e-6)


def test_a_reduced_decoding_changes_neither_matrix_nor_place():
    spot = (210.0, 130.0)
    full = spots([spot])
    half = cv2.resize(full[:224], (200, 112), interpolation=cv2.INTER_AREA)
    transform = ImageAug3D(final_dim=(64, 176), resize_lim=(0.48, 0.48))
    whole, reduced = transform(results_of(full[:224])), transform(results_of(half, reduction=2))
    np.testing.assert_array_equal(whole['img_aug_matrix'], reduced['img_aug_matrix'])
    difference = np.abs(whole['img'][0].astype(int) - reduced['img'][0])
    assert difference.mean() < 2 and difference.max() < 30


def test_training_draws_within_the_ranges():
    transform = ImageAug3D(final_dim=(64, 176), resize_lim=(0.45, 0.55), bot_pct_lim=(0.0, 0.1),
                           rot_lim=(-5.4, 5.4), rand_flip=True, is_train=True)
    np.random.seed(0)
    draws = [transform.draw(*SIZE) for _ in range(300)]
    assert {draw.flip for draw in draws} == {True, False}
    assert all(0.45 <= draw.resize <= 0.55 and abs(draw.rotate) <= 5.4 for draw in draws)
    assert all(0 <= draw.left <= 400 * draw.resize - 176 for draw in draws)
    assert len({draw.left for draw in draws}) > 20 and len({draw.top for draw in draws}) > 10


def test_images_of_different_sizes_become_one_size():
    results = results_of(spots([(100.0, 100.0)]))
    results['img'].append(np.zeros((120, 300, 3), np.uint8))
    results['image_sizes'] = np.array([[225, 400], [120, 300]])
    results['img_aug_matrix'] = np.tile(results['img_aug_matrix'], (2, 1, 1))
    transform = ImageAug3D(final_dim=(64, 176), resize_lim=(0.6, 0.6))
    assert {image.shape for image in transform(results)['img']} == {(64, 176, 3)}


@pytest.mark.parametrize('limits', [(0.5,), (0.6, 0.5), (0.0, 0.5)])
def test_impossible_ranges(limits):
    with pytest.raises(ConfigError, match='resize_lim'):
        ImageAug3D(final_dim=(64, 176), resize_lim=limits)
