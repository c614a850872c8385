"""Merging the views of a scene: equivariant predictions come back as they were."""
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS, TRANSFORMS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes, LiDARPoints
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import InstanceData, PixelData

from bevfusion_enhanced.datasets.map_masks import MapMasks, bev_pose
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset
from bevfusion_enhanced.datasets.transforms.test_time_augmentation import BEVView
from bevfusion_enhanced.datasets.vocabulary import MAP_CLASSES
from bevfusion_enhanced.engine.configuration.tta import (
    VIEWS,
    map_anchors,
    tta_model,
    tta_pipeline,
    use_tta,
)
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.test_time_augmentation import BEVFusionTTAModel
from bevfusion_enhanced.models.view_merging import (
    boxes_to_sensor,
    map_to_sensor,
    merge_boxes,
    merge_maps,
)

REPO = Path(__file__).resolve().parents[2]
SCOPE = [[-30.0, 30.0, 0.75], [-30.0, 30.0, 0.75]]
FLIPS = [dict(view) for view in VIEWS if view['rotation_deg'] == 0]


@pytest.fixture(autouse=True, scope='module')
def mmdet3d_scope() -> None:
    """Pipelines are built by name, as a runner does it."""
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmdet3d')


def matrices(views=VIEWS) -> list:
    return [BEVView(**{key: value for key, value in view.items() if key != 'type'}).matrix
            for view in views]


def cells() -> torch.Tensor:
    """(X, Y, 2) centres."""
    axis = -30 + 0.75 * (torch.arange(80, dtype=torch.float64) + 0.5)
    return torch.stack(torch.meshgrid(axis, axis, indexing='ij'), dim=-1)


class EquivariantToy(BaseModel):
    """Sees the points: a box stands on each, and the map is a bell around each.

    A point is (x, y, z, heading x, heading y): the pipeline turns places only, so the toy reads the
    heading off the view's matrix, as a network reads it off the shape of the scene.
    """

    def forward(self, inputs: dict, data_samples: list, mode: str = 'tensor') -> list:
        for points, sample in zip(inputs['points'], data_samples, strict=True):
            turn = torch.from_numpy(sample.lidar_aug_matrix[:2, :2])
            heading, velocity = points[:, 3:5] @ turn.T, points[:, 3:5] @ turn.T * 2
            size = torch.tensor([[4.0, 2.0, 1.5]]).expand(len(points), 3)
            boxes = torch.cat([points[:, :3], size, torch.atan2(heading[:, 1:], heading[:, :1]),
                               velocity], dim=1)
            order = torch.arange(len(points))
            sample.pred_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
                scores_3d=0.9 - 0.05 * order, labels_3d=order % 3)
            gap = cells().float()[None] - points[:, None, None, :2]                  # (P, X, Y, 2)
            bells = torch.exp(-gap.square().sum(-1) / 50)
            sample.pred_bev_map = PixelData(probs=torch.stack([bells[::2].sum(0),
                                                               bells[1::2].sum(0)]))
        return data_samples


def scene(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    places = rng.permutation(25)[:12]
    points = np.stack([places // 5 * 9.0 - 18, places % 5 * 9.0 - 18, rng.uniform(-1, 1, 12)], 1)
    angle = rng.uniform(-np.pi, np.pi, 12)
    points = np.column_stack([points + rng.uniform(-1, 1, points.shape), np.cos(angle),
                              np.sin(angle)]).astype(np.float32)
    return dict(points=LiDARPoints(torch.from_numpy(points), points_dim=5), token=f't{seed}',
                lidar_aug_matrix=np.eye(4, dtype=np.float32))


def predict(views: list, seeds=(0, 1), **settings) -> list:
    """What the toy says of scenes under views, through the pipeline and the merging model."""
    pipeline = TRANSFORMS.build(dict(type='TestTimeAug', transforms=[
        [dict(view) for view in views], [dict(type='PackBEVFusionInputs')]]))
    batch = pseudo_collate([pipeline(scene(seed)) for seed in seeds])
    model = BEVFusionTTAModel(module=EquivariantToy(), map_scope=SCOPE, **settings)
    model.module.test_step = lambda data: model.module.forward(**data)
    return model.test_step(batch)


def assert_same(left: Det3DDataSample, right: Det3DDataSample, *, map_tolerance: float) -> None:
    ours, theirs = left.pred_instances_3d, right.pred_instances_3d
    torch.testing.assert_close(ours.scores_3d, theirs.scores_3d, atol=1e-5, rtol=0)
    assert ours.labels_3d.tolist() == theirs.labels_3d.tolist()
    gap = ours.bboxes_3d.tensor - theirs.bboxes_3d.tensor
    gap[:, 6] = torch.sin(gap[:, 6])
    assert gap.abs().max() < 1e-4
    assert (left.pred_bev_map.probs - right.pred_bev_map.probs).abs().max() < map_tolerance


@pytest.mark.parametrize('method', ['weighted', 'nms'])
def test_views_of_an_equivariant_model_change_nothing(method):
    """To the accuracy of float32 for mirrored views, of interpolation for turned ones."""
    for seed, single, flips, every in zip((0, 1), predict(FLIPS[:1], box_merge=method),
                                          predict(FLIPS, box_merge=method),
                                          predict(list(VIEWS), box_merge=method), strict=True):
        truth = scene(seed)['points'].tensor
        assert len(single.pred_instances_3d.scores_3d) == len(truth)
        torch.testing.assert_close(single.pred_instances_3d.bboxes_3d.tensor[:, :3], truth[:, :3])
        assert_same(flips, single, map_tolerance=1e-5)
        assert_same(every, single, map_tolerance=0.01)
        assert every.token == single.token == f't{seed}'
        np.testing.assert_array_equal(every.lidar_aug_matrix, np.eye(4))


def test_the_toy_needs_to_be_brought_back():
    """Without it, merged views are of different places."""
    views = predict(FLIPS, seeds=(0,))[0]
    model = BEVFusionTTAModel(module=EquivariantToy(), map_scope=SCOPE)
    samples = [Det3DDataSample(metainfo=dict(lidar_aug_matrix=matrix.astype(np.float32)))
               for matrix in matrices(FLIPS)]
    for sample in samples:
        sample.pred_bev_map = views.pred_bev_map
    gap = model.merge_preds([samples])[0].pred_bev_map.probs - views.pred_bev_map.probs
    assert gap.abs().max() > 0.2


@pytest.mark.parametrize('matrix', matrices(), ids=str)
def test_boxes_come_back(matrix):
    """Corners of a box moved by hand are those of the box that comes back."""
    rng = np.random.default_rng(1)
    boxes = torch.from_numpy(rng.uniform(-20, 20, (30, 9))).float()
    boxes[:, 3:6] = torch.from_numpy(rng.uniform(1, 6, (30, 3))).float()
    back = boxes_to_sensor(boxes, matrix)
    moved = LiDARInstance3DBoxes(back, box_dim=9).corners.double().numpy() @ matrix[:3, :3].T
    theirs = LiDARInstance3DBoxes(boxes, box_dim=9).corners.double().numpy()
    gaps = np.linalg.norm(moved[:, :, None] - theirs[:, None], axis=-1)   # (30, 8, 8)
    assert gaps.min(axis=2).max() < 1e-3
    velocity = back[:, 7:9].double().numpy() @ matrix[:2, :2].T
    np.testing.assert_allclose(velocity, boxes[:, 7:9].numpy(), atol=1e-4)
    assert boxes_to_sensor(boxes[:, :7], matrix).shape == (30, 7)
    assert boxes_to_sensor(boxes[:0], matrix).shape == (0, 9)


def test_a_scaled_view_scales_sizes_back():
    boxes = torch.tensor([[2.0, 4.0, 1.0, 4.0, 2.0, 2.0, 0.3, 1.0, 0.0]])
    back = boxes_to_sensor(boxes, np.diag([2.0, 2.0, 2.0, 1.0]))
    torch.testing.assert_close(back, torch.tensor([[1.0, 2, 0.5, 2, 1, 1, 0.3, 0.5, 0]]))


def test_cells_that_a_turned_view_did_not_see_are_left_to_the_others():
    ones, matrix = torch.ones(1, 80, 80), matrices()[4]
    assert VIEWS[4]['rotation_deg'] == 22.5
    moved, seen = map_to_sensor(ones, matrix, scope=SCOPE, anchors=[0.5])
    assert not seen[0, 0, 0] and seen[0, 40, 40] and 0.7 < seen.float().mean() < 0.99
    torch.testing.assert_close(merge_maps([ones * 0.25, ones], [np.eye(4), matrix], scope=SCOPE,
                                          anchors=[0.5])[0, 0, 0], torch.tensor(0.25))
    alone = merge_maps([ones], [matrix], scope=SCOPE, anchors=[0.5])
    assert alone[0, 0, 0] == 0 and alone[0, 40, 40] == 1


@pytest.mark.parametrize('raster', ['devkit', 'cell_center'])
def test_true_maps_of_mirrored_views_come_back(mini_nuscenes, raster):
    """Each class at the place in its cells at which the raster paints it; not at the other one."""
    dataset = NuScenesMultiTaskDataset(data_root=str(mini_nuscenes), test_mode=True,
                                       ann_file='nuscenes_infos_val.pkl')
    info = dataset.get_data_info(1)
    painter = MapMasks(data_root=mini_nuscenes, classes=MAP_CLASSES, xbound=SCOPE[0],
                       ybound=SCOPE[1], raster=raster)
    lidar2global = info['ego2global'] @ info['lidar_points']['lidar2ego']

    def paint(matrix: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(painter.rasterise(
            location=info['location'], bev2global=bev_pose(lidar2global, matrix))).float()

    truth, mirrored = paint(np.eye(4)), paint(matrices()[3])
    right = map_anchors(MAP_CLASSES, raster)

    def iou(anchors: list) -> np.ndarray:
        back, seen = map_to_sensor(mirrored, matrices()[3], scope=SCOPE, anchors=anchors)
        found, true = (back >= 0.5) & seen, (truth > 0) & seen
        return ((found & true).sum((1, 2)) / (found | true).sum((1, 2)).clamp(min=1)).numpy()

    present = truth.sum((1, 2)).numpy() > 50
    wrong = [0.5 - anchor for anchor in right]
    assert present.sum() >= 4
    assert (iou(right)[present] > 0.85).all()
    assert (iou(right)[present] > iou(wrong)[present]).all()


def test_weighted_merging_by_hand():
    box = [0.0, 0, 0, 4, 2, 1, 0, 1, 0]
    near = [0.4, 0, 0, 4.4, 2, 1, np.pi, 3, 0]  # against the other's heading
    far = [20.0, 0, 0, 4, 2, 1, 0, 0, 0]
    merged, scores, labels = merge_boxes(
        [torch.tensor([box, far]), torch.tensor([near, box])],
        [torch.tensor([0.6, 0.4]), torch.tensor([0.2, 0.1])],
        [torch.tensor([3, 3]), torch.tensor([3, 5])], method='weighted', iou_threshold=0.3,
        max_boxes=10)
    # 0.6 and 0.2 make one; the far one and that of another class were seen by one of two views
    torch.testing.assert_close(scores, torch.tensor([0.4, 0.2, 0.05]))
    assert labels.tolist() == [3, 3, 5]
    torch.testing.assert_close(merged[0, [0, 3, 7]], torch.tensor([0.1, 4.1, 1.5]))
    assert merged[0, 6].abs() < 1e-6


def test_a_view_counts_once_in_an_object():
    """Two boxes of one view on one object do not make it more certain."""
    box = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0, 0, 0]] * 2)
    _, scores, _ = merge_boxes([box], [torch.tensor([0.5, 0.4])], [torch.tensor([0, 0])],
                               method='weighted', iou_threshold=0.3, max_boxes=10)
    torch.testing.assert_close(scores, torch.tensor([0.5]))


@pytest.mark.parametrize('method', ['weighted', 'nms'])
def test_no_boxes_and_too_many(method):
    empty = [torch.zeros(0, 9)] * 2, [torch.zeros(0)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    merged, scores, labels = merge_boxes(*empty, method=method, iou_threshold=0.3, max_boxes=5)
    assert merged.shape == (0, 9) and len(scores) == len(labels) == 0
    boxes = torch.zeros(30, 9)
    boxes[:, 0] = torch.arange(30) * 10
    boxes[:, 3:6] = 1
    found = merge_boxes([boxes], [torch.linspace(0.1, 0.9, 30)], [torch.zeros(30).long()],
                        method=method, iou_threshold=0.3, max_boxes=5)
    assert found[0].shape == (5, 9) and found[1][0] == pytest.approx(0.9)


def test_settings_that_are_wrong():
    with pytest.raises(ConfigError, match='box_merge'):
        BEVFusionTTAModel(module=EquivariantToy(), box_merge='mean')
    with pytest.raises(ConfigError, match='map_scope is missing'):
        model = BEVFusionTTAModel(module=EquivariantToy())
        sample = Det3DDataSample(metainfo=dict(lidar_aug_matrix=np.eye(4)))
        sample.pred_bev_map = PixelData(probs=torch.zeros(2, 80, 80))
        model.merge_preds([[sample]])
    with pytest.raises(ConfigError, match='does not end with a step that packs'):
        tta_pipeline([dict(type='LoadMultiViewImages')])


@pytest.fixture(scope='module')
def mini_config(mini_nuscenes) -> Config:
    config = Config.fromfile(REPO / 'configs/mini/phase4a_task_gca.py')
    dataset = config.test_dataloader.dataset
    dataset.data_root = f'{mini_nuscenes}/'
    for step in dataset.pipeline:
        if step['type'] == 'LoadBEVMapMasks':
            step['data_root'] = f'{mini_nuscenes}/'
        if step['type'] == 'ImageAug3D':
            step['resize_lim'] = [1.1, 1.1]  # the images are 160 x 90
    return config


def test_a_configs_own_views_are_taken(mini_config):
    config = Config(mini_config.to_dict())
    config.tta_pipeline = [dict(type='PackBEVFusionInputs')]
    config.tta_model = dict(type='BEVFusionTTAModel', box_merge='nms')
    use_tta(config)
    assert config.test_dataloader.dataset.pipeline == config.tta_pipeline
    assert config.custom_hooks[-1].model == config.tta_model


def test_the_real_model_under_every_view(mini_config, mini_nuscenes):
    """Untrained: finite and well formed, and beside it the truth in the sensor's frame."""
    config = Config(mini_config.to_dict())
    plain = config.test_dataloader.dataset.pipeline
    merging = tta_model(config.model, plain)
    views = [VIEWS[0], VIEWS[3], VIEWS[5]]
    torch.manual_seed(0)
    model = MODELS.build({**merging, 'module': config.model.to_dict()}).eval()
    build = {key: value for key, value in config.test_dataloader.dataset.to_dict().items()
             if key not in ('type', 'pipeline')}
    single, several = (NuScenesMultiTaskDataset(pipeline=[dict(step) for step in pipeline], **build)
                       for pipeline in (plain, tta_pipeline(plain, views)))
    batch = pseudo_collate([several[1], several[2]])
    assert len(batch['inputs']) == 3 and len(batch['inputs'][0]['points']) == 2
    assert torch.equal(batch['data_samples'][0][0].gt_bev_map.masks,
                       batch['data_samples'][1][0].gt_bev_map.masks)
    with torch.no_grad():
        merged = model.test_step(batch)
        alone = model.module.test_step(pseudo_collate([single[1]]))[0]
    for sample, index in zip(merged, (1, 2), strict=True):
        found, probs = sample.pred_instances_3d, sample.pred_bev_map.probs
        assert probs.shape == alone.pred_bev_map.probs.shape
        assert probs.isfinite().all() and probs.min() >= 0 and probs.max() <= 1
        assert found.bboxes_3d.tensor.isfinite().all() and found.bboxes_3d.tensor.shape[1] == 9
        assert 0 < len(found.scores_3d) <= 500
        assert (found.scores_3d.diff() <= 0).all() and found.labels_3d.max() < 10
        assert sample.token == single[index]['data_samples'].token
        assert torch.equal(sample.gt_bev_map.masks, single[index]['data_samples'].gt_bev_map.masks)
    assert not torch.equal(merged[0].pred_bev_map.probs, alone.pred_bev_map.probs)
