"""The hook that draws a few samples of a test run."""
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Sequence, Union

import numpy as np
from mmdet3d.registry import HOOKS
from mmdet3d.structures import Det3DDataSample
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner

from bevfusion_enhanced.datasets.transforms.map_masks import LoadBEVMapMasks
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.visualization.bev import DEFAULT_VIEW, View
from bevfusion_enhanced.visualization.boxes import DrawnBoxes, boxes_from
from bevfusion_enhanced.visualization.canvas import save_picture
from bevfusion_enhanced.visualization.sample_picture import PictureStyle, draw_sample


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """The middles of `count` equal parts of 0..total-1, without repetition; (<= count,) int64."""
    if total <= 0:
        return np.zeros(0, dtype=np.int64)
    return np.unique(((np.arange(count) + 0.5) * total / count).astype(np.int64))


def picture_name(sample_idx: int, token: str) -> str:
    """The file of a sample, e.g. `000012_3e8750f331d7499e9b5123e9eb70f2e2.png`."""
    return f'{sample_idx:06d}_{token}.png' if token else f'{sample_idx:06d}.png'


def map_view(transforms: Sequence[object]) -> Optional[View]:
    """(x_min, y_min, x_max, y_max) that a pipeline's map masks cover, None where it has none."""
    grids = [transform.masks for transform in transforms if isinstance(transform, LoadBEVMapMasks)]
    if not grids:
        return None
    low = grids[0].origin
    high = low + grids[0].step * grids[0].shape
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


class _Chosen(NamedTuple):
    path: Path
    truth: Optional[DrawnBoxes]


@HOOKS.register_module()
class BEVFusionVisualizationHook(Hook):
    """Writes a picture of a few samples, evenly spaced over the test set, while it is tested.

    The files are named by the sample's index and token. A folder that holds one of them already is
    refused before the test begins: nothing that exists is overwritten.

    Args:
        out_dir: Folder of the pictures; made where it is missing.
        num_samples: How many to draw.
        score_threshold: Boxes predicted with less are left out.
        map_threshold: A map cell is drawn where its probability is at least this.
        view: (x_min, y_min, x_max, y_max) in metres of the views from above; None takes what the
            test pipeline's map masks cover, or 50 m to each side.

    Raises:
        ConfigError: If a number is out of its range.
    """
    priority = 'LOW'

    def __init__(self, *, out_dir: Union[str, Path], num_samples: int = 3,
                 score_threshold: float = 0.3, map_threshold: float = 0.5,
                 view: Optional[View] = None) -> None:
        if num_samples < 1:
            raise ConfigError(f'num_samples of the pictures must be at least 1, not {num_samples}')
        for name, value in (('score_threshold', score_threshold), ('map_threshold', map_threshold)):
            if not 0. <= value <= 1.:
                raise ConfigError(f'{name} of the pictures must lie in 0..1, not {value}')
        self.out_dir = Path(out_dir)
        self.num_samples = num_samples
        self.score_threshold = score_threshold
        self.map_threshold = map_threshold
        self.view = view
        self._chosen: Dict[int, _Chosen] = {}
        self._style: Optional[PictureStyle] = None

    def before_test(self, runner: Runner) -> None:
        """Choose the samples, and refuse a folder that holds pictures of them."""
        dataset: BaseDataset = runner.test_dataloader.dataset
        self._style = self._make_style(dataset)
        self._chosen = self._choose(dataset)
        existing = [chosen.path for chosen in self._chosen.values() if chosen.path.exists()]
        if existing:
            raise ConfigError(f'{existing[0]} exists already and is not overwritten; '
                              'choose another --show-dir for the pictures')

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                        outputs: Optional[Sequence[Det3DDataSample]] = None) -> None:
        """Draw those samples of the batch that were chosen."""
        for sample in outputs or ():
            chosen = self._chosen.pop(int(sample.metainfo.get('sample_idx', -1)), None)
            if chosen is not None:
                save_picture(draw_sample(sample, self._style, truth=chosen.truth), chosen.path)
                runner.logger.info(f'Picture: {chosen.path}')

    def _make_style(self, dataset: BaseDataset) -> PictureStyle:
        meta = dataset.metainfo
        transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
        return PictureStyle(classes=tuple(meta.get('classes', ())),
                            map_classes=tuple(meta.get('map_classes', ())),
                            score_threshold=self.score_threshold,
                            map_threshold=self.map_threshold,
                            view=self.view or map_view(transforms) or DEFAULT_VIEW)

    def _choose(self, dataset: BaseDataset) -> Dict[int, _Chosen]:
        """The samples to draw, by index; their true boxes, which test pipelines do not pack."""
        chosen = {}
        for position in evenly_spaced(len(dataset), self.num_samples):
            info = dataset.get_data_info(int(position))
            index = int(info.get('sample_idx', position))
            annotations = info.get('eval_ann_info')
            truth = None if annotations is None else boxes_from(annotations['gt_bboxes_3d'],
                                                                annotations['gt_labels_3d'])
            path = self.out_dir / picture_name(index, info.get('token', ''))
            chosen[index] = _Chosen(path, truth)
        return chosen
