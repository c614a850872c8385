"""Two processes score what one does, however the samples are dealt out and repeated."""
import json
import os
from pathlib import Path
from typing import Dict, List, Sequence

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.dataset import DefaultSampler
from processes import one_thread, start_group

from bevfusion_enhanced.datasets.info_files import read_info_file
from bevfusion_enhanced.datasets.vocabulary import DETECTION_CLASSES
from bevfusion_enhanced.evaluation import BEVMapIoUMetric, NuScenesDetectionMetric

CLASSES = ['drivable_area', 'divider']
GRID = dict(classes=CLASSES, xbound=[-50.0, 50.0, 5.0], ybound=[-50.0, 50.0, 5.0], raster='devkit')
SAMPLES = 3  # two processes get two each, so one of them comes twice
DEALT = {'as the sampler deals': None, 'unevenly, one twice in the middle': [[0, 1], [1, 2]],
         'all to one': [[0, 1, 2], []], 'every sample to both': [[0, 1, 2], [2, 1, 0]]}


def map_sample(index: int) -> dict:
    rng = np.random.default_rng(index)
    return dict(token=f't{index}', scene_description='Night' if index else 'Day, rain',
                map_grid=GRID, gt_bev_map=dict(masks=rng.integers(0, 2, (2, 20, 20))),
                pred_bev_map=dict(probs=torch.from_numpy(rng.random((2, 20, 20))).float()))


def box_sample(root: Path, index: int) -> dict:
    """The truth of a key frame, moved a little, with scores in another order in each frame."""
    info = read_info_file(root / 'nuscenes_infos_val.pkl')['data_list'][index]
    rng = np.random.default_rng(index)
    true = [box for box in info['instances'] if box['bbox_label_3d'] == 0]
    boxes = torch.tensor([box['bbox_3d'] + [0.0, 0.0] for box in true]).reshape(-1, 9)
    boxes[:, 2] -= boxes[:, 5] / 2
    boxes[:, 0] += torch.from_numpy(rng.normal(size=len(boxes)) * 0.7).float()
    return dict(token=info['token'], sample_idx=index, pred_instances_3d=dict(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        scores_3d=torch.from_numpy(rng.random(len(boxes))).float(),
        labels_3d=torch.zeros(len(boxes), dtype=torch.long)))


def scores(root: Path, indices: Sequence[int], results_dir: str) -> Dict[str, float]:
    """Both metrics, in one process or as one of several."""
    maps = BEVMapIoUMetric(results_dir=results_dir)
    boxes = NuScenesDetectionMetric(data_root=str(root), ann_file='nuscenes_infos_val.pkl',
                                    jsonfile_prefix=results_dir)
    maps.dataset_meta = dict(map_classes=CLASSES, version='v1.0-mini')
    boxes.dataset_meta = dict(classes=list(DETECTION_CLASSES))
    maps.process({}, [map_sample(index) for index in indices])
    boxes.process({}, [box_sample(root, index) for index in indices])
    kept = [value for record in maps.results for value in record.values()]
    assert all(value.nbytes < 10_000 for value in kept if hasattr(value, 'nbytes'))
    return {**maps.evaluate(SAMPLES), **boxes.evaluate(SAMPLES)}


@pytest.fixture(scope='module')
def alone(mini_nuscenes, tmp_path_factory) -> Dict[str, float]:
    values = scores(mini_nuscenes, range(SAMPLES), str(tmp_path_factory.mktemp('alone')))
    assert 0 < values['object/car/AP'] < 1 and 0 < values['map/mean/iou@max'] < 1
    return values


@pytest.mark.parametrize('dealt', DEALT.values(), ids=DEALT.keys())
def test_two_processes_score_what_one_does(mini_nuscenes, alone, tmp_path, dealt) -> None:
    def member() -> None:
        os.chdir(tmp_path)
        torch.distributed.init_process_group('gloo')
        rank = torch.distributed.get_rank()
        indices: List[int] = (list(DefaultSampler(range(SAMPLES), shuffle=False))
                              if dealt is None else dealt[rank])
        values = scores(mini_nuscenes, indices, 'results')
        Path(f'{rank}.json').write_text(json.dumps(dict(indices=indices, values=values)))

    with one_thread():
        members = start_group(member, tmp_path / 'log', 2)
        codes = [process.wait() for process in members]
    assert codes == [0, 0], ''.join(process.text() for process in members)
    found = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1)]
    repeated = [index for one in found for index in one['indices']]
    assert set(repeated) == set(range(SAMPLES))
    assert len(repeated) > SAMPLES or dealt == [[0, 1, 2], []]
    for one in found:
        assert one['values'] == alone
    submission = json.loads((tmp_path / 'results/results_nusc.json').read_text())['results']
    assert len(submission) == SAMPLES
    with np.load(tmp_path / 'results/map_results.npz') as kept:
        assert sorted(kept['tokens']) == ['t0', 't1', 't2']
