"""The visualizer that MMDetection3D's own scripts and hooks ask to draw a sample."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import numpy as np
import torch
from mmdet3d.registry import VISUALIZERS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.dist import master_only
from mmengine.visualization import Visualizer

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.visualization.bev import DEFAULT_VIEW
from bevfusion_enhanced.visualization.canvas import save_picture
from bevfusion_enhanced.visualization.sample_picture import PictureStyle, draw_sample

_TRUTH = ('gt_instances_3d', 'eval_ann_info', 'gt_bev_map')
_PREDICTIONS = ('pred_instances_3d', 'pred_bev_map')


@VISUALIZERS.register_module()
class BEVFusionVisualizer(Visualizer):
    """MMEngine's visualizer, that draws whole samples: six cameras, LiDAR from above, and the map.

    `tools/misc/browse_dataset.py` and `Det3DVisualizationHook` (`tools/test.py --show-dir`) of
    MMDetection3D call it. Nothing is shown in a window: pictures go to files, or to the backends.

    Args:
        name: See `mmengine.visualization.Visualizer`.
        vis_backends: See there.
        save_dir: See there.
        map_threshold: A map cell is drawn where its probability is at least this.
    """

    def __init__(self, name: str = 'visualizer', *, vis_backends: Optional[List[Dict]] = None,
                 save_dir: Optional[str] = None, map_threshold: float = 0.5) -> None:
        if save_dir is None:  # browsing a dataset is no run: there is no folder to log to
            vis_backends = [backend for backend in vis_backends or () if 'save_dir' in backend]
        super().__init__(name=name, vis_backends=vis_backends or None, save_dir=save_dir)
        self.map_threshold = map_threshold

    @master_only
    def add_datasample(self, name: str, data_input: Dict[str, Any],
                       data_sample: Optional[Det3DDataSample] = None, draw_gt: bool = True,
                       draw_pred: bool = True, show: bool = False, wait_time: float = 0,
                       out_file: Optional[Union[str, Path]] = None,
                       o3d_save_path: Optional[str] = None, vis_task: Optional[str] = None,
                       pred_score_thr: float = 0.3, show_pcd_rgb: bool = False,
                       step: int = 0) -> None:
        """Draw a sample into a file, or hand the picture to the backends.

        Args:
            name: Of the picture, for the backends.
            data_input: Not looked at: the sample names the files of its sensors.
            data_sample: What to draw, with whatever it has.
            draw_gt: Draw its truth.
            draw_pred: Draw its predictions.
            show: Open a window; there is none.
            wait_time: Of a window.
            out_file: Where the picture goes; the backends get it where this is left out.
            o3d_save_path: Of a window's contents; not used.
            vis_task: Everything that the sample has is drawn, whichever task is named.
            pred_score_thr: Boxes predicted with less are left out.
            show_pcd_rgb: Not used: the points of a LiDAR have no colours.
            step: For the backends.

        Raises:
            ConfigError: A window is asked for.
        """
        if show:
            raise ConfigError('no window can be opened: pictures go to files; give an output '
                              'folder (browse_dataset.py --not-show --output-dir DIR, test.py '
                              '--show-dir DIR)')
        if data_sample is None:
            return
        sample = chosen(data_sample, truth=draw_gt, predictions=draw_pred)
        picture = draw_sample(sample, self._style(sample, pred_score_thr))
        if out_file is not None:
            save_picture(picture, Path(out_file))
        else:
            self.add_image(name, picture, step)

    def _style(self, sample: Det3DDataSample, score_threshold: float) -> PictureStyle:
        meta, grid = self.dataset_meta or {}, sample.metainfo.get('map_grid')
        view = DEFAULT_VIEW
        if grid is not None:
            (left, right, _), (back, front, _) = grid['xbound'], grid['ybound']
            view = (left, back, right, front)
        return PictureStyle(classes=tuple(meta.get('classes', ())),
                            map_classes=tuple(meta.get('map_classes', ())), view=view,
                            score_threshold=score_threshold, map_threshold=self.map_threshold)


def chosen(sample: Det3DDataSample, *, truth: bool, predictions: bool) -> Det3DDataSample:
    """A sample with its truth, its predictions or both, where its sensors saw them.

    A picture shows the sensors' files, which no augmentation has changed: boxes are brought back
    by the inverse of `lidar_aug_matrix`, a map that was augmented is left out.
    """
    kept = sample.new()
    for wanted, fields in ((truth, _TRUTH), (predictions, _PREDICTIONS)):
        for field in fields:
            if not wanted and field in kept:
                delattr(kept, field)
    matrix = sample.metainfo.get('lidar_aug_matrix')
    if matrix is None or np.allclose(matrix, np.eye(4), atol=1e-5):
        return kept
    return without_augmentation(kept, np.asarray(matrix, dtype=np.float64))


def without_augmentation(sample: Det3DDataSample, matrix: np.ndarray) -> Det3DDataSample:
    """A sample in the sensors' frame again.

    Args:
        sample: Augmented; not edited.
        matrix: (4, 4) from before to after: rotation about z, mirrors, one scale, translation.
    """
    sample = sample.new()
    for field in ('gt_instances_3d', 'pred_instances_3d'):
        if field in sample and 'bboxes_3d' in sample.get(field):
            instances = sample.get(field).clone()
            instances.bboxes_3d = boxes_before(instances.bboxes_3d, matrix)
            setattr(sample, field, instances)
    for field in ('gt_bev_map', 'pred_bev_map'):
        if field in sample:
            delattr(sample, field)
    sample.set_metainfo(dict(lidar_aug_matrix=np.eye(4, dtype=np.float32)))
    return sample


def boxes_before(boxes: LiDARInstance3DBoxes, matrix: np.ndarray) -> LiDARInstance3DBoxes:
    """LiDAR boxes before an augmentation of the scene; see `without_augmentation`."""
    before = boxes.clone()
    inverse = torch.as_tensor(np.linalg.inv(matrix), dtype=torch.float64)
    scale = abs(np.linalg.det(matrix[:3, :3])) ** (1 / 3)
    values = before.tensor.double()
    values[:, :3] = values[:, :3] @ inverse[:3, :3].T + inverse[:3, 3]
    values[:, 3:6] /= scale
    heading = torch.stack([values[:, 6].cos(), values[:, 6].sin()], dim=1) @ inverse[:2, :2].T
    values[:, 6] = torch.atan2(heading[:, 1], heading[:, 0])
    if values.shape[1] > 8:
        values[:, 7:9] = values[:, 7:9] @ inverse[:2, :2].T
    before.tensor = values.to(before.tensor.dtype)
    return before
