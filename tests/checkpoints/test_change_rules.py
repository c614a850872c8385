"""Every row of the table: a key that it is for, and what a change of it means."""
import re

import pytest

from bevfusion_enhanced.checkpoints.change_rules import (
    GEOMETRY_RULES,
    MEANING,
    MEANING_RULES,
    RULES,
    STRUCTURE,
    TRAINING,
    compile_pattern,
    kind_of,
    rule_for,
)
from bevfusion_enhanced.checkpoints.geometry import config_keys

TRAIN = 'train_dataloader.dataset'

# (a key, its old value, its new one, the kind); together they reach every rule.
EXAMPLES = [
    ('model.encoders.lidar.voxelize.point_cloud_range', [-54, -54, -5, 54, 54, 3],
     [-51, -51, -5, 51, 51, 3], MEANING),
    ('model.encoders.lidar.voxelize.voxel_size', [0.1, 0.1, 0.2], [0.2, 0.2, 0.2], MEANING),
    ('model.encoders.lidar.voxelize.max_num_points', 10, 5, MEANING),
    ('model.encoders.lidar.backbone.sparse_shape', [1440, 1440, 41], [512, 512, 41], MEANING),
    ('model.encoders.camera.vtransform.image_size', [256, 704], [64, 176], MEANING),
    ('model.encoders.camera.vtransform.feature_size', [32, 88], [8, 22], MEANING),
    ('model.encoders.camera.vtransform.xbound', [-54, 54, 0.3], [-54, 54, 0.6], MEANING),
    ('model.encoders.camera.vtransform.ybound', [-54, 54, 0.3], [-54, 54, 0.6], MEANING),
    ('model.encoders.camera.vtransform.zbound', [-10, 10, 20], [-5, 3, 8], MEANING),
    ('model.encoders.camera.vtransform.dbound', [1, 60, 0.5], [2, 61, 0.5], MEANING),
    ('model.encoders.camera.vtransform.dbound', [1, 60, 0.5], [1, 60, 1.0], STRUCTURE),
    ('model.encoders.camera.vtransform.dbound', [1, 60, 0.5], 'deep', STRUCTURE),
    ('model.encoders.camera.vtransform.downsample', 2, 4, MEANING),
    ('model.encoders.camera.vtransform.downsample', 1, 2, STRUCTURE),
    ('model.encoders.camera.backbone.window_size', 7, 8, STRUCTURE),
    ('model.heads.object.bbox_coder.pc_range', [-54, -54], [-51, -51], MEANING),
    ('model.heads.object.bbox_coder.voxel_size', [0.1, 0.1], [0.2, 0.2], MEANING),
    ('model.heads.object.bbox_coder.out_size_factor', 8, 4, MEANING),
    ('model.heads.object.test_cfg.grid_size', [1440, 1440, 41], [512, 512, 41], MEANING),
    ('model.heads.map.grid_transform.input_scope', [[-54, 54, 0.6]], [[-51, 51, 0.6]], MEANING),
    ('model.heads.map.grid_transform.output_scope', [[-50, 50, 0.5]], [[-30, 30, 0.5]], MEANING),
    ('model.data_preprocessor.mean', [123.7, 116.3, 103.5], [0, 0, 0], MEANING),
    ('model.data_preprocessor.std', [58.4, 57.1, 57.4], [1, 1, 1], MEANING),
    ('model.data_preprocessor.bgr_to_rgb', False, True, MEANING),

    ('model.heads.object.train_cfg.voxel_size', [0.1, 0.1, 0.2], [0.2, 0.2, 0.2], MEANING),
    ('model.heads.object.test_cfg.pc_range', [-54, -54], [-51, -51], MEANING),
    ('model.heads.map.grid_transform.prescale_factor', 1, 2, MEANING),
    ('model.heads.map.classes', ['a', 'b'], ['b', 'a'], MEANING),
    ('model.heads.object.decoder_layer.self_attn_cfg.num_heads', 8, 4, MEANING),
    ('model.data_preprocessor.pad_size_divisor', 32, 16, MEANING),
    ('model.decoder.backbone.norm_cfg.eps', 1e-3, 1e-5, MEANING),
    ('model.encoders.camera.neck.act_cfg.type', 'ReLU', 'GELU', MEANING),
    ('model.decoder.backbone.layer_strides', [1, 2], [2, 2], MEANING),
    ('model.encoders.camera.neck.upsample_cfg.align_corners', False, True, MEANING),
    (f'{TRAIN}.pipeline[LoadPointsWithSweeps].sweeps_num', 9, 1, MEANING),
    (f'{TRAIN}.dataset.pipeline[LoadPointsFromFile].use_dim', 5, 4, MEANING),
    (f'{TRAIN}.pipeline[LoadBEVMapMasks].xbound', [-50, 50, 0.5], [-30, 30, 0.5], MEANING),
    (f'{TRAIN}.pipeline[ObjectNameFilter].classes', ['a', 'b'], ['b', 'a'], MEANING),
    (f'{TRAIN}.pipeline[ImageAug3D].final_dim', [256, 704], [64, 176], MEANING),
    (f'{TRAIN}.pipeline[PointsRangeFilter].point_cloud_range', [-54], [-51], MEANING),
    (f'{TRAIN}.metainfo.classes', ['a', 'b'], ['b', 'a'], MEANING),
    (f'{TRAIN}.box_type_3d', 'LiDAR', 'Camera', MEANING),

    ('model.init_cfg.checkpoint', 'a.pth', 'b.pth', TRAINING),
    ('model.encoders.camera.backbone.init_cfg.checkpoint', 'a.pth', 'b.pth', TRAINING),
    ('model.encoders.camera.backbone.drop_path_rate', 0.2, 0.0, TRAINING),
    ('model.heads.object.decoder_layer.ffn_cfg.ffn_drop', 0.1, 0.0, TRAINING),
    ('model.encoders.camera.backbone.with_cp', False, True, TRAINING),
    ('model.encoders.camera.neck.act_cfg.inplace', False, True, TRAINING),
    ('model.encoders.camera.backbone.frozen_stages', -1, 2, TRAINING),
    ('model.decoder.backbone.norm_cfg.momentum', 0.01, 0.1, TRAINING),
    ('model.heads.object.bn_momentum', 0.1, 0.01, TRAINING),
    ('model.loss_scale.map', 1.0, 2.0, TRAINING),
    ('model.task_balance.alpha', 1.5, 1.0, TRAINING),
    ('model.task_balance', None, {'type': 'PCGrad'}, TRAINING),
    ('model.task_balance', None, {'type': 'UncertaintyWeighting'}, STRUCTURE),
    ('model.task_balance.type', 'GradNorm', 'PCGrad', STRUCTURE),
    ('model.heads.map.loss', 'focal', 'xent', TRAINING),
    ('model.heads.object.loss_bbox.loss_weight', 0.25, 0.5, TRAINING),
    ('model.heads.object.train_cfg.assigner.cls_cost.weight', 0.15, 0.3, TRAINING),
    ('model.heads.object.test_cfg.nms_type', None, 'circle', TRAINING),
    ('model.heads.object.bbox_coder.score_threshold', 0.0, 0.1, TRAINING),
    ('model.heads.object.num_proposals', 200, 300, TRAINING),
    ('model.encoders.lidar.voxelize.max_voxels', [1, 2], [3, 4], TRAINING),
    ('model.data_preprocessor.batch_augments', None, [{}], TRAINING),
    ('model.test_cfg.pts', 1, 2, TRAINING),
    ('optim_wrapper.optimizer.lr', 1e-3, 1e-4, TRAINING),
    ('optim_wrapper.optimizer.type', 'AdamW', 'SGD', TRAINING),
    ('optim_wrapper.optimizer.weight_decay', 0.01, 0.0, TRAINING),
    ('optim_wrapper.accumulative_counts', 1, 4, TRAINING),
    ('optim_wrapper.clip_grad.max_norm', 35, 1, TRAINING),
    ('optim_wrapper.paramwise_cfg.custom_keys.absolute_pos_embed.decay_mult', 0, 1, TRAINING),
    ('optim_wrapper.type', 'OptimWrapper', 'AmpOptimWrapper', TRAINING),
    ('param_scheduler[LinearLR].end', 500, 50, TRAINING),
    ('train_cfg.max_epochs', 20, 6, TRAINING),
    ('train_cfg.max_iters', 20, 6, TRAINING),
    ('train_cfg.val_interval', 5, 1, TRAINING),
    ('auto_scale_lr.enable', False, True, TRAINING),
    ('train_dataloader.batch_size', 4, 1, TRAINING),
    ('train_dataloader.num_workers', 4, 0, TRAINING),
    ('train_dataloader.sampler.shuffle', True, False, TRAINING),
    (f'{TRAIN}.pipeline[ImageAug3D].rot_lim', [-5, 5], [0, 0], TRAINING),
    (f'{TRAIN}.pipeline', ['LoadImages', 'Flip'], ['LoadImages'], TRAINING),
    (f'{TRAIN}.pipeline', ['LoadImages', 'Flip'], ['LoadPoints', 'Flip'], MEANING),
    (f'{TRAIN}.ann_file', 'a.pkl', 'b.pkl', TRAINING),
    (f'{TRAIN}.use_valid_flag', True, False, TRAINING),
    ('val_evaluator[BEVMapIoUMetric].classes', ['a'], ['b'], TRAINING),
    ('test_dataloader.dataset.pipeline[ImageAug3D].final_dim', [1, 2], [3, 4], TRAINING),
    ('default_hooks.checkpoint.interval', 1, 2, TRAINING),
    ('log_processor.window_size', 50, 10, TRAINING),
    ('work_dir', 'a', 'b', TRAINING),
    ('randomness.seed', 0, 1, TRAINING),
    ('custom_imports.imports', ['a'], ['b'], TRAINING),
]


@pytest.mark.parametrize('key, old, new, kind', EXAMPLES)
def test_kind_of_each_key(key, old, new, kind):
    rule = rule_for(key)
    assert kind_of(rule, old, new) == kind and rule.consequence
    assert compile_pattern(rule.pattern).match(key)


def test_every_rule_has_an_example_that_it_answers_for():
    answered = {rule_for(key).pattern for key, *_ in EXAMPLES}
    assert [rule.pattern for rule in RULES if rule.pattern not in answered] == []


def test_every_name_of_geometry_has_a_rule():
    keys = {rule.pattern for rule in GEOMETRY_RULES}
    assert keys == {key for name, key in config_keys.items() if name != 'bev_grid'}


@pytest.mark.parametrize('key', [
    'model.heads.map.decoder_channels', 'model.task_gca', 'model.encoders.camera.backbone.depths',
    'model.heads.map.loss_scale', 'model.heads.object.num_classes', 'model.type', 'model'])
def test_an_unknown_key_of_the_model_may_change_tensors(key):
    assert kind_of(rule_for(key), 1, 2) == STRUCTURE


@pytest.mark.parametrize('key', ['lr', 'point_cloud_range', 'model_zoo', 'modelling.depth'])
def test_a_variable_of_the_config_says_nothing(key):
    assert rule_for(key) is None


def test_patterns_take_whole_parts():
    braces = compile_pattern('a.{b,c_*}.d')
    assert braces.match('a.b.d') and braces.match('a.c_x.d[E].f')
    assert not braces.match('a.b.dd') and not braces.match('a.x.d') and not braces.match('a.b')
    deep = compile_pattern('a.**.z')
    assert deep.match('a.z') and deep.match('a.b.c.z.more') and not deep.match('b.a.z')
    assert not deep.match('a.b.zz')


def test_no_rule_hides_another():
    patterns = [rule.pattern for rule in (*GEOMETRY_RULES, *MEANING_RULES)]
    assert len(patterns) == len(set(patterns))
    for rule in GEOMETRY_RULES:
        assert rule_for(rule.pattern) is rule and re.fullmatch(r'[\w.]+', rule.pattern)
