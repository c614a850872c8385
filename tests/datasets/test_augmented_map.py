"""Points of known places of a map keep them through the augmentations of the scene.

Every step reads its own matrix: the scan is moved by the transforms, the masks are drawn through
`lidar_aug_matrix`. So a point that lay on a walkway has to lie on a cell of the walkway's mask.
"""
import cv2
import numpy as np
import pytest
import shapely
import torch
from map_factory import write_grid_town
from mmdet3d.structures.points import LiDARPoints

from bevfusion_enhanced.datasets.map_masks import LAYERS, load_vector_map, map_file
from bevfusion_enhanced.datasets.transforms.bev_augmentation import (
    BEVFusionGlobalRotScaleTrans,
    BEVFusionRandomFlip3D,
)
from bevfusion_enhanced.datasets.transforms.map_masks import LoadBEVMapMasks

LOCATION = 'boston-seaport'
CLASSES = ('drivable_area', 'walkway', 'carpark_area')
STEP = 0.5
MARGIN = 1.5  # metres from any border, which the raster rules move by up to a cell


@pytest.fixture(scope='module')
def town(tmp_path_factory):
    root = tmp_path_factory.mktemp('augmented_town')
    write_grid_town(root, location=LOCATION, size=(400.0, 400.0), block=40.0, corners=6, seed=3)
    return root


@pytest.fixture(scope='module')
def places(town):
    """A sample whose points lie within 25 m, and which of `CLASSES` each lies on (C, P)."""
    rng = np.random.default_rng(0)
    yaw = 0.7
    ego2global = np.eye(4)
    ego2global[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    ego2global[:2, 3] = 187.3, 214.9
    points = np.column_stack([rng.uniform(-25, 25, (4000, 2)), np.zeros((4000, 3))])
    places = shapely.points(points[:, :2] @ ego2global[:2, :2].T + ego2global[:2, 3])
    vector_map = load_vector_map(map_file(town, LOCATION))
    members, clear = [], np.ones(len(points), dtype=bool)
    for name in CLASSES:
        area = shapely.unary_union(vector_map.geometries[vector_map.layers == LAYERS.index(name)])
        shapely.prepare(area)
        members.append(shapely.contains(area, places))
        clear &= shapely.distance(area.boundary, places) > MARGIN
    sample = dict(points=points[clear].astype(np.float32), ego2global=ego2global, token='t',
                  location=LOCATION, lidar_points=dict(lidar2ego=np.eye(4)))
    return sample, np.array(members)[:, clear]


def run(town, sample, transforms, seed, raster) -> dict:
    np.random.seed(seed)
    results = dict(sample, points=LiDARPoints(torch.from_numpy(sample['points'].copy()), 5),
                   lidar_aug_matrix=np.eye(4, dtype=np.float32))
    for transform in [*transforms, LoadBEVMapMasks(
            data_root=str(town), classes=CLASSES, xbound=[-50, 50, STEP], ybound=[-50, 50, STEP],
            raster=raster)]:
        results = transform(results)
    return results


def agreement(results: dict, members: np.ndarray) -> float:
    cells = np.floor((results['points'].tensor[:, :2].numpy() + 50) / STEP).astype(int)
    seen = results['gt_bev_masks'][:, cells[:, 0], cells[:, 1]].astype(bool)
    return (seen == members).mean()


AUGMENTATIONS = {
    'none': [],
    'rotation': [BEVFusionGlobalRotScaleTrans(rot_range=3.0, scale_ratio_range=[1, 1])],
    'scale': [BEVFusionGlobalRotScaleTrans(rot_range=0.0, scale_ratio_range=[0.7, 1.3])],
    'shift': [BEVFusionGlobalRotScaleTrans(rot_range=0.0, scale_ratio_range=[1, 1],
                                           translation_std=3.0)],
    'flip': [BEVFusionRandomFlip3D()],
    'all': [BEVFusionGlobalRotScaleTrans(rot_range=0.78, scale_ratio_range=[0.9, 1.1],
                                         translation_std=0.5), BEVFusionRandomFlip3D()],
    'all, flip first': [BEVFusionRandomFlip3D(), BEVFusionGlobalRotScaleTrans(
        rot_range=0.78, scale_ratio_range=[0.9, 1.1], translation_std=0.5)]}


@pytest.mark.parametrize('raster', ['devkit', 'cell_center'])
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_points_keep_their_place_on_the_map(town, places, name, raster):
    sample, members = places
    assert members.shape[1] > 500 and 0.05 < members[0].mean() < 0.95 and members[1].mean() > 0.05
    scores = [agreement(run(town, sample, AUGMENTATIONS[name], seed, raster), members)
              for seed in range(4)]
    assert min(scores) == 1.0


def test_a_map_without_the_scale_is_noticed(town, places):
    """The original BEVFusion draws the masks without it."""
    sample, members = places
    stretch = BEVFusionGlobalRotScaleTrans(rot_range=0.0, scale_ratio_range=[1.25, 1.25])
    results = run(town, sample, [stretch], 0, 'cell_center')
    assert agreement(results, members) == 1.0
    plain = run(town, sample, [], 0, 'cell_center')
    assert agreement(dict(results, gt_bev_masks=plain['gt_bev_masks']), members) < 0.95


def test_cell_centers_are_nearer_to_the_truth_than_the_default(town, places):
    """Cells of the default lie a quarter metre off what is at their centre; those others do not."""
    sample, _ = places
    centres = np.stack(np.meshgrid(np.arange(-49.75, 50, STEP), np.arange(-49.75, 50, STEP),
                                   indexing='ij'), -1).reshape(-1, 2)
    pose = sample['ego2global']
    truth = load_vector_map(map_file(town, LOCATION)).covers(
        centres @ pose[:2, :2].T + pose[:2, 3], ['carpark_area']).reshape(200, 200)
    offsets = []
    for raster in ('devkit', 'cell_center'):
        mask = run(town, sample, [], 0, raster)['gt_bev_masks'][2]
        count, areas = cv2.connectedComponents(mask, connectivity=4)
        cells = [np.argwhere(areas == area) for area in range(1, count)]
        whole = [area for area in cells if area.min() > 2 and area.max() < 197]
        assert len(whole) >= 4
        offsets.append(STEP * np.mean([area.mean(axis=0) - area[truth[tuple(area.T)]].mean(axis=0)
                                       for area in whole], axis=0))
    assert (offsets[0] > 0.15).all() and (np.abs(offsets[1]) < 0.05).all()
    assert mask[truth].all()
