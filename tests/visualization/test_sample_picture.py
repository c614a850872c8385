import copy
import glob
import pickle

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from sample_parts import CLASSES, MAP_CLASSES, lidar_boxes

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.visualization.boxes import true_boxes
from bevfusion_enhanced.visualization.cameras import project_boxes
from bevfusion_enhanced.visualization.canvas import save_picture
from bevfusion_enhanced.visualization.sample_picture import (
    WIDTH,
    PictureStyle,
    draw_sample,
    read_points,
)

STYLE = PictureStyle(classes=CLASSES, map_classes=MAP_CLASSES)


def test_a_whole_sample(make_sample):
    sample = make_sample()
    before = copy.deepcopy(sample)
    picture = draw_sample(sample, STYLE)
    assert picture.shape[1] == WIDTH and picture.dtype == np.uint8
    assert picture.shape[0] == 44 + 2 * 360 + 680 + 76
    torch.testing.assert_close(sample.pred_bev_map.probs, before.pred_bev_map.probs)
    np.testing.assert_array_equal(sample.metainfo['lidar2img'], before.metainfo['lidar2img'])


def test_predictions_change_the_picture(make_sample):
    sample = make_sample()
    low, high = (draw_sample(sample, STYLE._replace(score_threshold=score))
                 for score in (0.5, 0.95))
    assert low.shape == high.shape
    assert (low != high)[:44 + 360].any() and (low != high)[44 + 720:].any()
    assert not (low != high)[-76:].any()


def without(sample: Det3DDataSample, *names: str) -> Det3DDataSample:
    """A copy that lacks some metainfo and fields."""
    result = Det3DDataSample()
    result.set_metainfo({key: value for key, value in sample.metainfo_items() if key not in names})
    for key, value in sample.items():
        if key not in names:
            setattr(result, key, value)
    return result


@pytest.mark.parametrize('absent', [
    ('img_path', 'lidar2img'), ('lidar_path', ), ('pred_bev_map', 'gt_bev_map'), ('pred_bev_map', ),
    ('pred_instances_3d', 'eval_ann_info'),
], ids=lambda names: '+'.join(names))
def test_what_a_sample_lacks_is_left_out(make_sample, absent):
    assert draw_sample(without(make_sample(), *absent), STYLE).shape[1] == WIDTH


def test_augmented_sample_is_refused(make_sample):
    sample = make_sample()
    sample.set_metainfo(dict(lidar_aug_matrix=np.diag([-1., 1., 1., 1.])))
    with pytest.raises(ValueError, match='lidar_aug_matrix'):
        draw_sample(sample, STYLE)


def test_broken_scan_is_named(make_sample, tmp_path):
    sample = make_sample()
    assert read_points(sample).shape == (200, 5)
    path = tmp_path / 'short.bin'
    np.zeros(7, dtype=np.float32).tofile(path)
    for name in (path, tmp_path / 'missing.bin'):
        sample.set_metainfo(dict(lidar_path=str(name)))
        with pytest.raises(DataError, match=f'{name.name}.*token0'):
            read_points(sample)


def test_pictures_are_not_overwritten(tmp_path):
    path = tmp_path / 'new' / 'a.png'
    save_picture(np.zeros((4, 4, 3), dtype=np.uint8), path)
    kept = path.read_bytes()
    with pytest.raises(ConfigError, match='a.png exists already'):
        save_picture(np.ones((4, 4, 3), dtype=np.uint8), path)
    assert path.read_bytes() == kept


@pytest.mark.needs_shared
def test_projection_agrees_with_the_boxes_of_the_real_frame(shared):
    """The converter's own 2D boxes enclose the projected corners of fully visible boxes."""
    info = pickle.load(open(glob.glob(f'{shared}/nuscenes_sample/*.pkl')[0], 'rb'))['data_list'][0]
    camera = info['images']['CAM_FRONT']
    cam2img = np.eye(4)
    cam2img[:3, :3] = camera['cam2img']
    annotated = [one for one in info['instances'] if one['bbox_label_3d'] >= 0]
    rows = [tuple(one['bbox_3d'][:2]) + (one['bbox_3d'][2] - one['bbox_3d'][5] / 2, )
            + tuple(one['bbox_3d'][3:]) for one in annotated]
    sample = Det3DDataSample()
    sample.eval_ann_info = dict(gt_bboxes_3d=lidar_boxes(*rows), gt_labels_3d=np.zeros(len(rows)))
    corners = true_boxes(sample).corners
    pixels, visible = project_boxes(corners, (cam2img @ np.array(camera['lidar2cam']))[None],
                                    sizes=np.array([[1600, 900]]))
    whole = visible[0].all(axis=-1)
    lows, highs = pixels[0, whole].min(axis=(1, 2)), pixels[0, whole].max(axis=(1, 2))
    flat = np.array([one['bbox'] for one in info['cam_instances']['CAM_FRONT']])
    gaps = np.abs(np.concatenate([lows, highs], axis=1)[:, None] - flat).max(axis=-1).min(axis=1)
    assert whole.sum() > 30
    assert np.median(gaps) < 2. and np.percentile(gaps, 90) < 4.    # pixels
