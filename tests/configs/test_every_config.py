"""Every config builds, trains and predicts, at full size but for the cells and pixels; metafile."""
import copy
from pathlib import Path

import pytest
import torch
import yaml
from mmdet3d.registry import DATASETS, MODELS, TRANSFORMS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch.nn.modules.batchnorm import _BatchNorm

from bevfusion_enhanced.experiments.ablation import load_rebased

REPO = Path(__file__).resolve().parents[2]
FULL = sorted(path.name for path in (REPO / 'configs').glob('*.py'))
ABLATIONS = sorted(path.name for path in (REPO / 'configs/ablations').glob('*.py'))
METAFILE = yaml.safe_load((REPO / 'configs/metafile.yml').read_text())
LISTED = {model['Name']: model for model in METAFILE['Models']}
PIXELS = 4  # times coarser


def load(name: str) -> Config:
    return Config.fromfile(str(REPO / 'configs' / name))


def shrink(model: Config) -> None:
    """Few cells and pixels, and no weight of another shape."""
    coarser = 8 if model.heads.get('object') is None else 9  # of 128, 180 and 360 cells
    model.data_preprocessor.pad_size_divisor = 16
    camera, lidar = model.encoders.get('camera'), model.encoders.get('lidar')
    if camera:
        transform = camera.vtransform
        for name in ('image_size', 'feature_size'):
            transform[name] = [size // PIXELS for size in transform[name]]
        for name in ('xbound', 'ybound'):
            transform[name] = [*transform[name][:2], transform[name][2] * coarser]
    holders = [(lidar.voxelize, 'voxel_size'), (lidar.backbone, 'sparse_shape')] if lidar else []
    head = model.heads.get('object')
    if head:
        head.num_proposals = 20
        holders += [(head.train_cfg, 'voxel_size'), (head.train_cfg, 'grid_size'),
                    (head.test_cfg, 'voxel_size'), (head.test_cfg, 'grid_size'),
                    (head.bbox_coder, 'voxel_size')]
    for holder, name in holders:
        x, y, *rest = holder[name]
        holder[name] = ([x * coarser, y * coarser, *rest] if name == 'voxel_size' else
                        [x // coarser, y // coarser, *rest])
    if model.heads.get('map'):
        grid = model.heads.map.grid_transform
        grid.output_scope = [[*axis[:2], axis[2] * 8] for axis in grid.output_scope]


def make_batch(model: Config, rig) -> dict:
    """Two samples of noise, with two cameras, three boxes and a map each."""
    generator = torch.Generator().manual_seed(0)
    height, width = (model.encoders.camera.vtransform.image_size if model.encoders.get('camera')
                     else (64, 176))
    calibration = rig(batch=2, image_size=(height, width))
    cells = [round((last - first) / step) for first, last, step in
             model.heads.map.grid_transform.output_scope] if model.heads.get('map') else [1, 1]
    inputs, samples = dict(img=[], points=[]), []
    for b in range(2):
        inputs['img'].append(torch.rand(2, 3, height, width, generator=generator) * 255)
        inputs['points'].append(torch.randn(400, 5, generator=generator) * 12)
        sample = Det3DDataSample(metainfo=dict(sample_idx=b, **{
            name: getattr(calibration, name)[b].numpy() for name in (
                'cam2img', 'cam2lidar', 'lidar2img', 'img_aug_matrix', 'lidar_aug_matrix')}))
        boxes = torch.tensor([[5., 5, -1, 4, 2, 2, 0.3, 1, 0], [-9, 3, -1, 1, 1, 2, 1, 0, 0],
                              [0, -15, -1, 8, 3, 3, 2, 0, 1]])
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.tensor([0, 8, 3]))
        sample.gt_bev_map = PixelData(masks=(torch.rand(6, *cells, generator=generator) > 0.7
                                             ).to(torch.uint8))
        samples.append(sample)
    for name, encoder in (('img', 'camera'), ('points', 'lidar')):
        depth = (model.encoders.get('camera') or {}).get('vtransform', {}).get('type')
        if not model.encoders.get(encoder) and not (name == 'points'
                                                    and depth == 'DepthLSSTransform'):
            del inputs[name]
    return dict(inputs=inputs, data_samples=samples)


def check(config: Config, rig) -> torch.nn.Module:
    """Build; one training step reaches every weight that is not frozen; predictions are whole."""
    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # one cell of one sample has no variance
    batch = make_batch(config.model, rig)
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    total, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    total.backward()
    assert total.isfinite()
    still = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not still
    model.eval()
    with torch.no_grad():
        sample = model.test_step(batch)[0]
    heads = config.model.heads
    if heads.get('object'):
        assert sample.pred_instances_3d.bboxes_3d.tensor.shape[1] == 9
        assert len(sample.pred_instances_3d.bboxes_3d) == heads.object.num_proposals
    if heads.get('map'):
        assert tuple(sample.pred_bev_map.probs.shape) == tuple(sample.gt_bev_map.masks.shape)
    return model


@pytest.fixture(scope='module')
def checked(rig):
    """Parameters of a config's shrunk network, once it has been checked; a network only once."""
    known = {}

    def parameters(config: Config) -> int:
        shrink(config.model)
        key = repr(config.model)
        if key not in known:
            known[key] = sum(p.numel() for p in check(config, rig).parameters())
        return known[key]

    return parameters


@pytest.mark.parametrize('name', FULL)
def test_full_size_networks_train_and_predict_on_coarser_grids(name, checked):
    assert checked(load(name)) == LISTED[Path(name).stem]['Metadata']['Parameters']


@pytest.mark.parametrize('name', ABLATIONS)
def test_ablations_train_and_predict_at_toy_sizes(name, rig):
    config = load_rebased(REPO / 'configs/ablations' / name,
                          str(REPO / 'configs/mini/phase4a_task_gca.py'))
    check(config, rig)


@pytest.mark.parametrize('name', [*FULL, *(f'ablations/{name}' for name in ABLATIONS)])
def test_pipelines_build_and_load_what_the_model_reads(name, tmp_path):
    from bevfusion_enhanced.engine.configuration.preflight import (
        check_heads,
        check_pipeline,
        leaf_datasets,
    )
    config = load(name)
    init_default_scope('mmdet3d')
    (tmp_path / 'maps/expansion').mkdir(parents=True)
    for part, training in (('train', True), ('val', False), ('test', False)):
        for where, dataset in leaf_datasets(config[f'{part}_dataloader'].dataset, part):
            check_pipeline(dataset.pipeline, config.model, where=where, training=training)
            check_heads(config.model.heads, dataset.metainfo, where=where)
            for step in dataset.pipeline:
                if step.type == 'LoadBEVMapMasks':
                    step = dict(step, data_root=str(tmp_path))
                    assert [step['xbound'], step['ybound']] == list(
                        config.model.heads.map.grid_transform.output_scope)
                if step['type'] != 'BEVFusionObjectSample':  # needs its database
                    TRANSFORMS.build(dict(step))
        kind = config[f'{part}_dataloader'].dataset.type
        assert DATASETS.get(kind) is not None
    measured = {evaluator.type for evaluator in config.val_evaluator}
    assert measured == {dict(object='NuScenesDetectionMetric', map='BEVMapIoUMetric')[task]
                        for task, head in config.model.heads.items() if head}


def test_the_recipe_of_phase_4a():
    config = load('phase4a_task_gca.py')
    assert config.train_cfg.max_epochs == 20
    optimizer = config.optim_wrapper
    assert optimizer.type == 'OptimWrapper' and optimizer.clip_grad.max_norm == 35  # FP32
    assert (optimizer.optimizer.type, optimizer.optimizer.lr) == ('AdamW', 2e-4)
    assert config.auto_scale_lr.base_batch_size == 32 == 8 * config.train_dataloader.batch_size
    warmup, cosine = config.param_scheduler
    assert (warmup.type, warmup.end, warmup.by_epoch) == ('LinearLR', 500, False)
    assert (cosine.type, cosine.end, cosine.convert_to_iter_based) == (
        'CosineAnnealingLR', 20, True)


def test_phase_4b_takes_every_weight_of_phase_4a_on_maps_twice_as_fine():
    init_default_scope('mmdet3d')
    coarse, fine = (MODELS.build(load(name).model) for name in (
        'phase4a_task_gca.py', 'phase4b_bev2x.py'))
    fine.load_state_dict(coarse.state_dict(), strict=True)
    assert coarse.encoders['lidar'].backbone.output_shape() == (256, 180, 180)
    assert fine.encoders['lidar'].backbone.output_shape() == (256, 360, 360)
    assert [int(n) // 2 for n in fine.encoders['camera'].vtransform.nx[:2]] == [360, 360]
    assert fine.heads['object'].test_cfg.map_size == (360, 360)
    assert fine.heads['map'].transform.output_size == (400, 400)


def test_a_frozen_backbone_is_frozen_before_anyone_asks():
    config = load('phase4a_frozen_swin.py')
    shrink(config.model)
    init_default_scope('mmdet3d')
    model = MODELS.build(config.model)
    trained = {name.rsplit('.', 2)[0] for name, p in model.named_parameters()
               if p.requires_grad and name.startswith('encoders.camera.backbone')}
    assert not trained
    assert any(p.requires_grad for p in model.encoders['camera'].neck.parameters())


def test_checkpointed_activations_change_no_gradient(rig):
    gradients = []
    for with_cp in (False, True):
        config = load_rebased(REPO / 'configs/ablations/gca_task_specific.py',
                              str(REPO / 'configs/mini/phase4a_task_gca.py'))
        config.model.encoders.camera.backbone.with_cp = with_cp
        model = check(config, rig)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_synchronised_norms_keep_every_name():
    from mmengine.model import convert_sync_batchnorm
    config = load_rebased(REPO / 'configs/ablations/gca_task_specific.py',
                          str(REPO / 'configs/mini/phase4a_task_gca.py'))
    strategy = Config.fromfile(str(REPO / 'configs/_base_/strategies/sync_bn.py'))
    init_default_scope('mmdet3d')
    model = MODELS.build(config.model)
    names, norms = list(model.state_dict()), sum(
        isinstance(module, _BatchNorm) for module in model.modules())
    converted = convert_sync_batchnorm(model, strategy.sync_bn)
    assert list(converted.state_dict()) == names
    synchronised = sum(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.modules())
    assert synchronised == norms > 40


def test_the_metafile_lists_every_config_and_no_result():
    index = yaml.safe_load((REPO / 'model-index.yml').read_text())
    assert index == {'Import': ['configs/metafile.yml']}
    collections = {collection['Name'] for collection in METAFILE['Collections']}
    assert {model['Config'] for model in LISTED.values()} == {f'configs/{name}' for name in FULL}
    for name, model in LISTED.items():
        config = load(f'{name}.py')
        assert model['Config'] == f'configs/{name}.py' and model['In Collection'] in collections
        assert model['Metadata']['Epochs'] == config.train_cfg.max_epochs
        assert ('BEV Map Segmentation' in model['Metadata']['Tasks']) == bool(
            config.model.heads.get('map'))
        assert 'Weights' in model or 'Results' not in model  # a result needs the weights it is of
