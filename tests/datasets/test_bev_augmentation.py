import numpy as np
import pytest
import torch
from mmdet3d.datasets.transforms import PointShuffle
from mmdet3d.structures import LiDARInstance3DBoxes
from mmdet3d.structures.points import LiDARPoints

from bevfusion_enhanced.datasets.transforms.bev_augmentation import (
    BEVFusionGlobalRotScaleTrans,
    BEVFusionPointShuffle,
    BEVFusionRandomFlip3D,
)
from bevfusion_enhanced.errors import ConfigError


def scene(seed: int = 0, boxes: int = 12) -> dict:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.uniform(-30, 30, (boxes, 2)), rng.uniform(-2, 0, (boxes, 1)),
                             rng.uniform(1, 5, (boxes, 3)), rng.uniform(-3, 3, (boxes, 1)),
                             rng.uniform(-5, 5, (boxes, 2))], axis=1).astype(np.float32)
    return dict(points=LiDARPoints(torch.from_numpy(
        rng.uniform(-40, 40, (200, 5)).astype(np.float32)), points_dim=5),
        gt_bboxes_3d=LiDARInstance3DBoxes(torch.from_numpy(values), box_dim=9))


def augment(transforms: list, results: dict, seed: int) -> dict:
    np.random.seed(seed)
    for transform in transforms:
        results = transform(results)
    return results


TRANSFORMS = {
    'rotate, scale, shift': [BEVFusionGlobalRotScaleTrans(
        rot_range=[-0.8, 0.8], scale_ratio_range=[0.8, 1.2], translation_std=0.5)],
    'flip': [BEVFusionRandomFlip3D()],
    'all': [BEVFusionGlobalRotScaleTrans(rot_range=0.8, scale_ratio_range=[0.8, 1.2],
                                         translation_std=[0.5, 0.2, 0.1]),
            BEVFusionRandomFlip3D()]}


@pytest.mark.parametrize('name', TRANSFORMS)
@pytest.mark.parametrize('seed', range(4))
def test_points_boxes_and_velocities_follow_the_matrix(name, seed):
    before, after = scene(), augment(TRANSFORMS[name], scene(), seed)
    matrix = torch.from_numpy(after['lidar_aug_matrix'])
    assert matrix.dtype == torch.float32

    def moved(points):
        return points @ matrix[:3, :3].T + matrix[:3, 3]

    torch.testing.assert_close(after['points'].tensor[:, :3], moved(before['points'].tensor[:, :3]),
                               rtol=0, atol=1e-4)
    assert torch.equal(after['points'].tensor[:, 3:], before['points'].tensor[:, 3:])
    # As sets of corners: a mirror reorders them.
    corners = [boxes.corners for boxes in (after['gt_bboxes_3d'], before['gt_bboxes_3d'])]
    distances = torch.cdist(corners[0], moved(corners[1]))
    assert distances.min(dim=2).values.max() < 1e-3 and distances.min(dim=1).values.max() < 1e-3
    velocities = torch.nn.functional.pad(before['gt_bboxes_3d'].tensor[:, 7:], (0, 1))
    torch.testing.assert_close(after['gt_bboxes_3d'].tensor[:, 7:],
                               (velocities @ matrix[:3, :3].T)[:, :2], rtol=0, atol=1e-4)


def test_heading_follows_velocity():
    results = scene()
    boxes = results['gt_bboxes_3d'].tensor
    boxes[:, 7], boxes[:, 8] = 3 * torch.cos(boxes[:, 6]), 3 * torch.sin(boxes[:, 6])
    after = augment(TRANSFORMS['all'], results, seed=3)['gt_bboxes_3d'].tensor
    heading = torch.atan2(after[:, 8], after[:, 7])
    torch.testing.assert_close(torch.cos(heading - after[:, 6]), torch.ones(len(after)))


def test_projection_to_the_image_does_not_change():
    rng = np.random.default_rng(5)
    lidar2img = torch.from_numpy(rng.normal(size=(3, 4)).astype(np.float32))
    lidar2img[2] = torch.tensor([0.01, 0.02, 0.03, 50.0])
    before, after = scene(), augment(TRANSFORMS['all'], scene(), seed=2)

    def project(centres, matrix):
        pixels = torch.nn.functional.pad(centres, (0, 1), value=1.0) @ matrix.T
        return pixels[:, :2] / pixels[:, 2:]

    undo = torch.linalg.inv(torch.from_numpy(after['lidar_aug_matrix']))
    torch.testing.assert_close(project(after['gt_bboxes_3d'].gravity_center, lidar2img @ undo),
                               project(before['gt_bboxes_3d'].gravity_center, lidar2img),
                               rtol=1e-4, atol=1e-4)


def test_order_is_rotate_shift_scale():
    transform = BEVFusionGlobalRotScaleTrans(rot_range=[0.3, 0.3], scale_ratio_range=[2, 2],
                                             translation_std=1.0)
    matrix = augment([transform], scene(), seed=1)['lidar_aug_matrix']
    np.random.seed(1)
    np.random.uniform(size=2)
    np.testing.assert_allclose(matrix[:3, 3], 2 * np.random.normal(size=3), rtol=1e-5)
    np.testing.assert_allclose(matrix[0, :2], [2 * np.cos(0.3), -2 * np.sin(0.3)], rtol=1e-5)


def test_all_four_mirrors_occur():
    matrices = [augment([BEVFusionRandomFlip3D()], scene(), seed)['lidar_aug_matrix']
                for seed in range(30)]
    seen = {tuple(np.diag(matrix)[:2]) for matrix in matrices}
    assert seen == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_without_boxes_and_without_points():
    assert len(augment(TRANSFORMS['all'], scene(boxes=0), seed=0)['gt_bboxes_3d']) == 0
    only_matrix = augment(TRANSFORMS['all'], dict(lidar_aug_matrix=np.eye(4)), seed=0)
    assert not np.allclose(only_matrix['lidar_aug_matrix'], np.eye(4))


@pytest.mark.parametrize('settings', [dict(rot_range=[1, -1], scale_ratio_range=[1, 1]),
                                      dict(rot_range=0.1, scale_ratio_range=[0, 1]),
                                      dict(rot_range=0.1, scale_ratio_range=[1, 1],
                                           translation_std=-1)])
def test_impossible_ranges(settings):
    with pytest.raises(ConfigError):
        BEVFusionGlobalRotScaleTrans(**settings)


@pytest.mark.parametrize('count', [0, 1, 200])
def test_points_come_in_the_order_of_mmdetection3ds_shuffle(count):
    points = scene()['points'][:count]
    before = points.tensor.clone()
    torch.manual_seed(1)
    ours = BEVFusionPointShuffle()(dict(points=points))['points']
    assert torch.equal(points.tensor, before)
    torch.manual_seed(1)
    theirs = PointShuffle()(dict(points=points))['points']
    assert type(ours) is type(theirs) and torch.equal(ours.tensor, theirs.tensor)
