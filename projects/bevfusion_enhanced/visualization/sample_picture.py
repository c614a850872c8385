"""One picture of one sample: six cameras, the LiDAR from above, the map predicted and true.

Boxes and points are in the LIDAR_TOP frame (x right, y forward, z up, metres); each view from above
has forward up. A sample must not carry a BEV augmentation: test pipelines have none.
"""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from mmdet3d.structures import Det3DDataSample

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.visualization.bev import DEFAULT_VIEW, View, draw_bev, draw_map
from bevfusion_enhanced.visualization.boxes import DrawnBoxes, predicted_boxes, true_boxes
from bevfusion_enhanced.visualization.cameras import (
    camera_name,
    draw_cameras,
    image_files,
    read_image,
)
from bevfusion_enhanced.visualization.canvas import new_figure, pixel_axes, stack_rows, to_image
from bevfusion_enhanced.visualization.palette import FOREGROUND, MAP_COLOURS, TRUTH, class_colours

WIDTH = 1920
"""Of the picture, in pixels."""


class PictureStyle(NamedTuple):
    """What a picture needs beside the sample.

    Attributes:
        classes: Detection classes, indexed by the labels.
        map_classes: Map layers, in the channels' order.
        score_threshold: Boxes predicted with less are left out.
        map_threshold: A map cell is drawn where its probability is at least this.
        view: (x_min, y_min, x_max, y_max) of the views from above in metres; the map must cover it.
    """
    classes: Tuple[str, ...]
    map_classes: Tuple[str, ...]
    score_threshold: float = 0.3
    map_threshold: float = 0.5
    view: View = DEFAULT_VIEW


def draw_sample(sample: Det3DDataSample, style: PictureStyle, *,
                truth: Optional[DrawnBoxes] = None) -> np.ndarray:
    """Draw one sample with whatever it has; a modality or a task that is absent is left out.

    Args:
        sample: With metainfo `sample_idx`, `token`, `img_path`, `lidar2img`, `lidar_path`,
            `num_pts_feats`; predictions in `pred_instances_3d` and `pred_bev_map`; truth in
            `gt_instances_3d` or `eval_ann_info`, and `gt_bev_map`.
        style: Names, thresholds, and the part of the ground to show.
        truth: The true boxes where the sample does not hold them; None takes the sample's.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: If an image or the scan cannot be read.
        ValueError: If the sample was augmented.
    """
    _refuse_augmented(sample)
    rows = [_title_row(sample)]
    cameras = _camera_rows(sample, style)
    panels = _panels(sample, style, true_boxes(sample) if truth is None else truth)
    return stack_rows((*rows, *cameras, np.concatenate(panels, axis=1), _legend_row(style)))


def _refuse_augmented(sample: Det3DDataSample) -> None:
    matrix = sample.metainfo.get('lidar_aug_matrix')
    if matrix is not None and not np.allclose(matrix, np.eye(4), atol=1e-5):
        raise ValueError('the sample was augmented (lidar_aug_matrix is not the identity), and its '
                         'files were not; draw samples of a test pipeline')


def _camera_rows(sample: Det3DDataSample, style: PictureStyle) -> List[np.ndarray]:
    files = image_files(sample.metainfo.get('img_path'))
    if not files or 'lidar2img' not in sample.metainfo:
        return []
    boxes = predicted_boxes(sample, score_threshold=style.score_threshold)
    grid = draw_cameras([read_image(file) for file in files],
                        names=[camera_name(file) or f'camera {i}' for i, file in enumerate(files)],
                        lidar2img=np.asarray(sample.metainfo['lidar2img']).reshape(-1, 4, 4),
                        boxes=boxes, colours=class_colours(style.classes), width=WIDTH)
    return [grid]


def _panels(sample: Det3DDataSample, style: PictureStyle,
            truth: DrawnBoxes) -> List[np.ndarray]:
    """The views from above, side by side: boxes, map predicted, map true."""
    maps = []
    if 'pred_bev_map' in sample:
        probabilities = sample.pred_bev_map.probs.detach().cpu().numpy()
        maps.append((probabilities >= style.map_threshold,
                     f'Map, predicted (probability from {style.map_threshold:g})'))
    if 'gt_bev_map' in sample:
        maps.append((np.asarray(sample.gt_bev_map.masks), 'Map, true'))
    size = min(WIDTH // (1 + len(maps)), 960)
    predicted = predicted_boxes(sample, score_threshold=style.score_threshold)
    title = (f'LiDAR, {len(predicted.labels)} predicted boxes '
             f'(score from {style.score_threshold:g}), {len(truth.labels)} true')
    panels = [draw_bev(points=read_points(sample), predicted=predicted, truth=truth,
                       colours=class_colours(style.classes), view=style.view, size=size,
                       title=title)]
    return panels + [draw_map(masks, names=style.map_classes, title=name, view=style.view,
                              size=size) for masks, name in maps]


def read_points(sample: Det3DDataSample) -> Optional[np.ndarray]:
    """The points (P, F) of the sample's key frame, read from its file; None without a LiDAR.

    Raises:
        DataError: If the file is missing or does not hold whole points.
    """
    path = sample.metainfo.get('lidar_path')
    if path is None:
        return None
    features = int(sample.metainfo.get('num_pts_feats', 5))
    try:
        values = np.fromfile(path, dtype=np.float32)
        return values.reshape(-1, features)
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read the LiDAR file {path} of sample '
                        f'{sample.metainfo.get("token", "?")}: {error}') from None


def _title_row(sample: Det3DDataSample) -> np.ndarray:
    figure = new_figure(width=WIDTH, height=44)
    axes = pixel_axes(figure, width=WIDTH, height=44)
    known = sample.metainfo
    facts = [f'sample {known.get("sample_idx", "?")}', known.get('scene_name'),
             known.get('location'), f'token {known["token"]}' if 'token' in known else None]
    axes.text(14, 22, '   |   '.join(filter(None, facts)), color=FOREGROUND, fontsize=13,
              va='center')
    axes.text(WIDTH - 14, 22, 'seen from above: forward is up', color=FOREGROUND, fontsize=11,
              va='center', ha='right', alpha=0.75)
    return to_image(figure)


def _legend_row(style: PictureStyle) -> np.ndarray:
    figure = new_figure(width=WIDTH, height=76)
    _legend(figure, [Line2D([], [], color=colour, linewidth=2.5)
                     for colour in class_colours(style.classes) / 255.]
            + [Line2D([], [], color=TRUTH, linewidth=1.5, linestyle=(0, (3, 1.5)))],
            [*style.classes, 'true box'], height=0.72)
    _legend(figure, [Patch(facecolor=colour)
                     for colour in class_colours(style.map_classes, MAP_COLOURS) / 255.],
            style.map_classes, height=0.26)
    return to_image(figure)


def _legend(figure, handles: Sequence, labels: Sequence[str], *, height: float) -> None:
    """One centred line of legend entries at a height of the figure (0 bottom, 1 top)."""
    if handles:
        figure.legend(handles, [label.replace('_', ' ') for label in labels], loc='center',
                      bbox_to_anchor=(0.5, height), ncol=len(handles), frameon=False,
                      labelcolor=FOREGROUND, fontsize=11, handlelength=1.6, columnspacing=1.6)
