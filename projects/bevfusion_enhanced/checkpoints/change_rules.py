"""What a change of each config key means for weights that were trained before it: one table.

A pattern names a key and all below it. `*` stands for any text within one part of the key, `**` for
any number of parts, `{a,b}` for one of the two. The first rule that fits counts. A key of the model
that no rule knows may change tensors, so it counts as structure; a key elsewhere that a runner
reads is training; one that no runner reads (a variable of the config) says nothing by itself.
"""
import re
from typing import Any, Callable, List, NamedTuple, Optional, Pattern, Tuple, Union

from .geometry import config_keys, steps

STRUCTURE, MEANING, TRAINING = 'structure', 'meaning', 'training'
KINDS = (STRUCTURE, MEANING, TRAINING)


class Rule(NamedTuple):
    """The kind of a change, or a function of the old and the new value that tells it."""

    pattern: str
    kind: Union[str, Callable[[Any, Any], str]]
    consequence: str


def _if_steps_change(old: Any, new: Any) -> str:
    """Depth bins have an output channel each."""
    return MEANING if steps(old) is not None and steps(old) == steps(new) else STRUCTURE


def _if_turned_on(old: Any, new: Any) -> str:
    """A downsampling by 1 has no layers; any other has the same ones, with another stride."""
    return MEANING if isinstance(old, int) and isinstance(new, int) and old > 1 < new else STRUCTURE


def _if_loading_changes(old: Any, new: Any) -> str:
    """Steps that load decide what the model is shown; the others only vary it."""
    loads = [sorted(str(step) for step in side if 'Load' in str(step))
             if isinstance(side, list) else None for side in (old, new)]
    return TRAINING if loads[0] == loads[1] else MEANING


def _if_balance_learns(old: Any, new: Any) -> str:
    """Two ways of balancing tasks keep weights of their own; PCGrad only turns gradients."""
    kinds = [str(side.get('type') if isinstance(side, dict) else side) for side in (old, new)]
    learn = any(kind.endswith(('UncertaintyWeighting', 'GradNorm')) for kind in kinds)
    return STRUCTURE if learn else TRAINING


_GEOMETRY = {
    'point_cloud_range': 'a cell of the BEV map lies at another place',
    'voxel_size': 'a voxel is of another size, so the same weights see other shapes',
    'max_num_points': 'a voxel averages over another number of points',
    'sparse_shape': 'the voxel grid has another number of cells',
    'image_size': 'the images are seen at another size',
    'feature_size': 'the camera features are of another size',
    'xbound': 'a cell of the camera\'s BEV map lies at another place along x',
    'ybound': 'a cell of the camera\'s BEV map lies at another place along y',
    'zbound': 'other heights are summed into a cell of the camera\'s BEV map',
    'dbound': 'a depth bin stands for another distance',
    'downsample': 'a cell of the camera\'s BEV map is of another size',
    'window_size': 'the attention windows of the images have another size',
    'object_range': 'the boxes\' positions are decoded to other places',
    'object_voxel_size': 'the boxes\' positions are decoded with another scale',
    'object_out_size_factor': 'the boxes\' positions are decoded with another scale',
    'object_grid_size': 'proposals are placed on another grid',
    'map_input_scope': 'the map is cut from another part of the BEV',
    'map_grid': 'a cell of the predicted map lies at another place',
    'image_mean': 'the images are normalised in another way',
    'image_std': 'the images are normalised in another way',
    'image_bgr_to_rgb': 'the colours of the images are in another order',
}
_GEOMETRY_KINDS = {'dbound': _if_steps_change, 'downsample': _if_turned_on,
                   'window_size': lambda old, new: STRUCTURE}

GEOMETRY_RULES = tuple(Rule(config_keys[name], _GEOMETRY_KINDS.get(name, MEANING), consequence)
                       for name, consequence in _GEOMETRY.items())

MEANING_RULES = (
    Rule('model.heads.*.train_cfg.{point_cloud_range,grid_size,voxel_size,out_size_factor}',
         MEANING, 'boxes are taught at other places of the BEV map'),
    Rule('model.heads.*.test_cfg.{pc_range,grid_size,voxel_size,out_size_factor}',
         MEANING, 'boxes are predicted at other places of the BEV map'),
    Rule('model.heads.*.grid_transform.prescale_factor', MEANING,
         'the BEV map is resampled in another way'),
    Rule('model.heads.*.classes', MEANING, 'an output channel stands for another class'),
    Rule('model.heads.*.decoder_layer.*.num_heads', MEANING,
         'the attention splits its channels in another way'),
    Rule('model.data_preprocessor.pad_size_divisor', MEANING,
         'the images are padded to another size'),
    Rule('model.**.norm_cfg.eps', MEANING, 'the norms compute something else'),
    Rule('model.**.act_cfg.type', MEANING, 'the layers compute something else'),
    Rule('model.**.{qk_scale,layer_strides,encoder_paddings}', MEANING,
         'the layers compute something else'),
    Rule('model.**.upsample_cfg.{mode,align_corners}', MEANING,
         'features are resized in another way'),
    Rule('train_dataloader.**.pipeline[LoadPoints*].{sweeps_num,load_dim,use_dim}', MEANING,
         'the LiDAR encoder is shown other points or other features of them'),
    Rule('train_dataloader.**.pipeline[LoadBEVMapMasks].{xbound,ybound}', MEANING,
         'the true map lies at another place'),
    Rule('train_dataloader.**.pipeline[*].classes', MEANING, 'other classes are taught'),
    Rule('train_dataloader.**.pipeline[ImageAug3D].final_dim', MEANING,
         'the images are seen at another size'),
    Rule('train_dataloader.**.pipeline[{PointsRangeFilter,ObjectRangeFilter}].point_cloud_range',
         MEANING, 'points or boxes of another range are taught'),
    Rule('train_dataloader.**.metainfo', MEANING, 'a label stands for another class'),
    Rule('train_dataloader.**.box_type_3d', MEANING, 'boxes are described in another frame'),
)

_NO_TENSORS = 'no tensor of the model depends on it'
TRAINING_RULES = (
    Rule('model.init_cfg', TRAINING, 'how fresh weights start'),
    Rule('model.**.{init_cfg,pretrained,convert_weights}', TRAINING, 'how fresh weights start'),
    Rule('model.**.{drop_rate,attn_drop_rate,drop_path_rate,dropout,dropout_ratio,dropout_layer,'
         'ffn_drop,attn_drop,proj_drop,drop_path}', TRAINING, 'how much is dropped in training'),
    Rule('model.**.{with_cp,use_checkpoint}', TRAINING, 'memory for time, the same result'),
    Rule('model.**.act_cfg.inplace', TRAINING, 'memory, the same result'),
    Rule('model.**.{frozen_stages,norm_eval}', TRAINING, 'which weights go on learning'),
    Rule('model.**.norm_cfg.{requires_grad,momentum}', TRAINING, 'how the norms go on learning'),
    Rule('model.heads.*.bn_momentum', TRAINING, 'how the norms go on learning'),
    Rule('model.loss_scale', TRAINING, 'weights of the losses'),
    Rule('model.task_balance.{alpha,lr,interval,on}', TRAINING, 'weights of the losses'),
    Rule('model.task_balance', _if_balance_learns, 'another balance of the losses'),
    Rule('model.heads.*.{loss,loss_cls,loss_bbox,loss_heatmap,loss_weight,aux_weight,use_dice_loss,'
         'dice_weight,focal_alpha,focal_gamma,auxiliary}', TRAINING, 'what the losses count'),
    Rule('model.heads.*.train_cfg', TRAINING, 'how predictions are matched with the truth'),
    Rule('model.heads.*.test_cfg', TRAINING, 'which predictions are kept, not how they are made'),
    Rule('model.heads.*.bbox_coder.{score_threshold,post_center_range}', TRAINING,
         'which predictions are kept, not how they are made'),
    Rule('model.heads.*.{num_proposals,nms_kernel_size,nms_free_classes}', TRAINING,
         f'how many boxes are proposed, and which; {_NO_TENSORS}'),
    Rule('model.encoders.lidar.voxelize.max_voxels', TRAINING,
         f'how much of a crowded cloud is kept; {_NO_TENSORS}'),
    Rule('model.data_preprocessor.batch_augments', TRAINING, 'augmentation'),
    Rule('model.{train_cfg,test_cfg}', TRAINING, 'how predictions are matched and kept'),
    Rule('optim_wrapper.optimizer.lr', TRAINING, 'learning rate'),
    Rule('optim_wrapper.optimizer.type', TRAINING,
         'another optimizer: what the old one had gathered does not fit it'),
    Rule('optim_wrapper.optimizer', TRAINING, 'settings of the optimizer'),
    Rule('optim_wrapper.accumulative_counts', TRAINING, 'batches before each step'),
    Rule('optim_wrapper.clip_grad', TRAINING, 'limit of the gradients'),
    Rule('optim_wrapper.paramwise_cfg', TRAINING, 'learning rate and decay of single parameters'),
    Rule('optim_wrapper', TRAINING, 'precision or accumulation of the steps'),
    Rule('param_scheduler', TRAINING, 'the schedule'),
    Rule('train_cfg.max_epochs', TRAINING, 'number of epochs'),
    Rule('train_cfg.max_iters', TRAINING, 'number of iterations'),
    Rule('train_cfg', TRAINING, 'how long is trained, and how often validated'),
    Rule('auto_scale_lr', TRAINING, 'learning rate'),
    Rule('train_dataloader.batch_size', TRAINING, 'batch size'),
    Rule('train_dataloader.{num_workers,persistent_workers,prefetch_factor,pin_memory}', TRAINING,
         'speed of loading'),
    Rule('train_dataloader.{sampler,batch_sampler}', TRAINING, 'order of the samples'),
    Rule('train_dataloader.**.pipeline[*]', TRAINING, 'augmentation, or how samples are read'),
    Rule('train_dataloader.**.pipeline', _if_loading_changes,
         'the samples are prepared by other steps'),
    Rule('train_dataloader.**.{data_root,ann_file,data_prefix,indices,times,backend_args}',
         TRAINING, 'which samples are trained on, or where they lie'),
    Rule('train_dataloader', TRAINING, 'which samples are trained on, and how they are read'),
    Rule('{val_dataloader,test_dataloader,val_evaluator,test_evaluator,val_cfg,test_cfg,tta_model,'
         'tta_pipeline}', TRAINING, 'evaluation alone'),
    Rule('{default_hooks,custom_hooks}', TRAINING, 'what happens beside the training steps'),
    Rule('{visualizer,vis_backends,log_processor,log_level}', TRAINING, 'logging and pictures'),
    Rule('{work_dir,load_from,resume,launcher,experiment_name}', TRAINING,
         'where and how the run is started'),
    Rule('{randomness,env_cfg,model_wrapper_cfg,find_unused_parameters,sync_bn}', TRAINING,
         'seed, processes and speed'),
    Rule('{custom_imports,default_scope,runner_type}', TRAINING, 'where classes are looked up'),
)

RULES: Tuple[Rule, ...] = (*GEOMETRY_RULES, *MEANING_RULES, *TRAINING_RULES)

UNKNOWN_OF_MODEL = Rule('model', STRUCTURE, 'its tensors change; those that fit are reused')


def rule_for(key: str) -> Optional[Rule]:
    """The rule of a config key, or None for a variable that no runner reads."""
    for rule, pattern in _COMPILED:
        if pattern.match(key):
            return rule
    return UNKNOWN_OF_MODEL if key == 'model' or key.startswith('model.') else None


def kind_of(rule: Rule, old: Any, new: Any) -> str:
    """What a change from `old` to `new` is under a rule."""
    return rule.kind(old, new) if callable(rule.kind) else rule.kind


def compile_pattern(pattern: str) -> Pattern[str]:
    """A pattern of a rule as a regular expression that fits its key and all below it."""
    text: List[str] = []
    for token in re.findall(r'\.\*\*|\*\*|\*|[{},]|[^*{},]+?(?=\.\*\*|[*{},]|$)', pattern):
        text.append({'.**': r'(?:\..+)?', '*': r'[^.\[\]]*', '{': '(?:', '}': ')', ',': '|'}
                    .get(token, re.escape(token)))
    return re.compile(''.join(text) + r'(?:[.\[].*)?$')


_COMPILED = tuple((rule, compile_pattern(rule.pattern)) for rule in RULES)
