"""Test-time augmentation by configuration: `tta_pipeline` and `tta_model`, as MMEngine names them.

A config that has them is tested by them. One that has not is tested on the views below, by the
pipeline and the map that it has.
"""
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...datasets.vocabulary import LINE_LAYERS, MAP_LAYERS
from ...errors import ConfigError

VIEWS = tuple(dict(type='BEVView', flip_x=flip_x, flip_y=flip_y, rotation_deg=degrees)
              for degrees in (0.0, 22.5, -22.5) for flip_x in (False, True)
              for flip_y in (False, True))
"""Four mirrorings, each straight on and turned both ways: twelve passes; the first is the scene."""


@HOOKS.register_module()
class MergeViewsHook(Hook):
    """Before a test, after the weights are loaded, put the model into one that merges views.

    The checkpoint then fits the model as it was trained.

    Args:
        model: Config of a `BaseTTAModel`, without its `module`.
    """

    def __init__(self, *, model: Mapping[str, Any]) -> None:
        self.model = dict(model)

    def before_test(self, runner: Runner) -> None:
        """Wrap the model."""
        from mmdet3d.registry import MODELS
        runner.model = MODELS.build({**self.model, 'module': runner.model})

    def after_test(self, runner: Runner) -> None:
        """Unwrap it."""
        runner.model = runner.model.module


def use_tta(config: Config) -> None:
    """Let a config be tested with test-time augmentation, in place.

    Raises:
        ConfigError: Its pipeline is not of a form that views can be put into.
    """
    from .preflight import leaf_datasets
    for _, dataset in leaf_datasets(config.test_dataloader['dataset'], 'test_dataloader.dataset'):
        pipeline = config.get('tta_pipeline')
        model = config.get('tta_model') or tta_model(config.model, dataset['pipeline'])
        dataset['pipeline'] = pipeline or tta_pipeline(dataset['pipeline'])
    config.custom_hooks = [*config.get('custom_hooks', []),
                           ConfigDict(type='MergeViewsHook', model=model)]


def tta_pipeline(pipeline: Sequence[Mapping[str, Any]],
                 views: Sequence[Mapping[str, Any]] = VIEWS) -> List[Dict[str, Any]]:
    """A test pipeline with views: everything is read once, then each view is cropped and packed.

    Args:
        pipeline: Ends with a step that packs.
        views: Steps of which each makes one view.

    Raises:
        ConfigError: The pipeline does not end with a packing step.
    """
    steps = [ConfigDict(step) for step in pipeline]
    if not steps or not str(steps[-1].get('type')).startswith('Pack'):
        raise ConfigError('--tta: test_dataloader.dataset.pipeline does not end with a step that '
                          'packs; write a tta_pipeline into the config')
    last_read = max((index for index, step in enumerate(steps)
                     if 'Load' in str(step['type']) or 'ImageAug' in str(step['type'])),
                    default=-1)
    ranged = [index for index, step in enumerate(steps) if 'RangeFilter' in str(step['type'])]
    start = min([index for index in ranged if index > last_read], default=len(steps) - 1)
    return [*steps[:start], ConfigDict(type='TestTimeAug', transforms=[
        [ConfigDict(view) for view in views], *([step] for step in steps[start:])])]


def tta_model(model: Mapping[str, Any],
              pipeline: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """The config of the model that merges: where the map's cells lie is read from its head."""
    merging: Dict[str, Any] = dict(type='BEVFusionTTAModel')
    head = (model.get('heads') or {}).get('map')
    if head:
        raster = next((step.get('raster', 'devkit') for step in pipeline
                       if step['type'] == 'LoadBEVMapMasks'), None)
        merging.update(map_scope=[list(axis) for axis in head['grid_transform']['output_scope']],
                       map_anchors=map_anchors(head['classes'], raster))
    return merging


def map_anchors(classes: Sequence[str], raster: Optional[str]) -> List[float]:
    """For each map class the place in a cell that its truth, and so its prediction, belongs to.

    nuScenes' raster paints areas with pixel k at the lower edge of cell k, and lines about its
    centre; to mirror a map is to mirror these places. Other rasters have all at the centre.
    """
    if raster != 'devkit':
        return [0.5] * len(classes)
    return [0.5 if set(MAP_LAYERS[name]) <= set(LINE_LAYERS) else 0.0 for name in classes]
