"""The network learns one real nuScenes key frame by heart: every sensor convention at once."""
import json
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from scipy.optimize import linear_sum_assignment


def heatmap_losses(work_dir: Path) -> np.ndarray:
    """The heatmap loss of every iteration, from the run's scalars."""
    scalars = next(work_dir.rglob('scalars.json'))
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    name = 'loss/object/heatmap'
    return np.array([row[name] for row in rows if name in row])  # others are what hooks measured


@pytest.mark.needs_shared
def test_one_real_frame_is_learnt_by_heart(repo: Path, shared: Path, tmp_path: Path) -> None:
    config = Config.fromfile(str(repo / 'configs/mini/real_frame.py'))
    root = f'{shared}/nuscenes_sample/'
    config.merge_from_dict({
        'train_dataloader.dataset.dataset.data_root': root, 'frame_dataset.data_root': root,
        'default_hooks.logger.interval': 1, 'log_processor.window_size': 1})
    config.work_dir = str(tmp_path)
    runner = Runner.from_cfg(config)
    runner.train()

    losses = heatmap_losses(tmp_path)
    assert len(losses) == 100
    assert losses[-5:].mean() < 0.2 * losses[0]

    predicted = predict_the_frame(runner, config)
    instances = mmengine.load(f'{root}{config.ann_file}')['data_list'][0]['instances']
    annotated = np.array([instance['bbox_3d'][:2] for instance in instances
                          if instance['num_lidar_pts'] >= 5])
    best = predicted.scores_3d.argsort(descending=True)[:len(instances)]  # as many as are true
    centres = predicted.bboxes_3d.gravity_center[best, :2].numpy()
    assert share_matched(annotated, centres, within=2.0) >= 0.5


def predict_the_frame(runner: Runner, config: Config):
    """The trained model's boxes on the frame it has seen."""
    from mmdet3d.registry import DATASETS
    model = runner.model.eval()
    batch = pseudo_collate([DATASETS.build(config.frame_dataset)[0]])
    with torch.no_grad():
        return model.test_step(batch)[0].pred_instances_3d


def share_matched(annotated: np.ndarray, centres: np.ndarray, *, within: float) -> float:
    """Share of the annotated centres (A, 2) in metres that have one of (P, 2) of their own."""
    near = np.linalg.norm(annotated[:, None] - centres[None], axis=-1) < within
    rows, columns = linear_sum_assignment(~near)
    return float(near[rows, columns].sum() / len(annotated))
