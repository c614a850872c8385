"""Loading of samples: one worker, images of 1600 x 900, a scan and nine sweeps, boxes and map."""
import copy
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.benchmarks.map_drawing import LOCATION, TownFile
from bevfusion_enhanced.benchmarks.measure import Measurement
from bevfusion_enhanced.datasets.info_files import write_info_file
from bevfusion_enhanced.datasets.vocabulary import CAMERAS, INFO_CLASSES
from bevfusion_enhanced.engine.loop.loader_workers import guard_workers
from bevfusion_enhanced.ops.memory import keep_freed_memory

CONFIG = 'configs/phase4a_task_gca.py'
SCAN_POINTS = 34_720
SWEEPS = 9
MEMORY_SAMPLES = 1000
TIMED_SAMPLES = 60
REFERENCE_SAMPLES = 30


def make_info(token: str, *, sweeps: int = SWEEPS, boxes: int = scene.BOXES) -> Dict[str, Any]:
    """One entry of an info file; all entries share the same sensor files."""
    rig = scene.metainfo(scene.rig())
    truth, labels = scene.boxes(boxes)
    lidar = dict(lidar_path='scan.bin', num_pts_feats=5, lidar2ego=np.eye(4).tolist())
    pose = np.eye(4)
    pose[:2, 3] = 700, 900
    return dict(
        token=token, timestamp=1.5e9, sample_idx=0, ego2global=pose.tolist(), location=LOCATION,
        scene_token='scene', scene_name='scene-0001', scene_description='', prev='', next='',
        lidar_points=lidar,
        lidar_sweeps=[dict(timestamp=1.5e9 - 0.05 * (i + 1),
                           lidar_points=dict(lidar_path=f'sweep{i}.bin',
                                             lidar2sensor=_moved(i).tolist()))
                      for i in range(sweeps)],
        images={name: dict(img_path=f'{name}.jpg', cam2img=rig['cam2img'][i][:3, :3].tolist(),
                           lidar2cam=np.linalg.inv(rig['cam2lidar'][i]).tolist())
                for i, name in enumerate(CAMERAS)},
        instances=[dict(bbox_3d=box[:7], velocity=box[7:], bbox_label_3d=label,
                        bbox_label=label, bbox_3d_isvalid=True, num_lidar_pts=5, num_radar_pts=0)
                   for box, label in zip(truth.tolist(), labels.tolist())])


def _moved(sweep: int) -> np.ndarray:
    pose = np.eye(4)
    pose[1, 3] = 0.4 * (sweep + 1)
    return pose


def write_dataset(root: Path, infos: List[Dict[str, Any]]) -> None:
    """Write info file, images, scans and map of a dataset below `root`."""
    categories = {name: index for index, name in enumerate(INFO_CLASSES)}
    write_info_file(dict(metainfo=dict(categories=categories, dataset='nuscenes',
                                       info_version='1.1', version='v1.0-trainval'),
                         data_list=infos), root / 'infos.pkl')
    for name, image in zip(CAMERAS, scene.file_images(), strict=True):
        cv2.imwrite(str(root / f'{name}.jpg'), image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    for index, name in enumerate(['scan', *(f'sweep{i}' for i in range(SWEEPS))]):
        scene.cloud(SCAN_POINTS, seed=index).numpy().tofile(root / f'{name}.bin')
    TownFile(blocks=16, corners=24).write(root)


def build_dataset(root: Path, *, reduction: Any = 'auto', pipeline: bool = True) -> Dataset:
    """The training dataset of the full config over `write_dataset`'s files."""
    config = Config.fromfile(Path(__file__).parents[3] / CONFIG)
    init_default_scope('mmdet3d')
    steps = copy.deepcopy(config.train_pipeline) if pipeline else []
    for step in steps:
        if step['type'] == 'LoadMultiViewImages':
            step['reduction'] = reduction
        if step['type'] == 'LoadBEVMapMasks':
            step['data_root'] = str(root)
    settings = dict(config.train_dataloader.dataset)
    settings.update(data_root=str(root), ann_file='infos.pkl', pipeline=steps,
                    data_prefix={name: '' for name in settings['data_prefix']})
    return DATASETS.build(settings)


class _Worker:
    """One worker process, asked for sample after sample."""

    def __init__(self, dataset: Dataset) -> None:
        loader = DataLoader(dataset, batch_size=1, num_workers=1, prefetch_factor=2,
                            sampler=_Endless(len(dataset)), collate_fn=pseudo_collate)
        guard_workers(loader)
        self._loader = iter(loader)
        self.process = self._loader._workers[0].pid
        for _ in range(5):
            next(self._loader)

    def rate(self, samples: int) -> float:
        """Samples a second."""
        start = time.perf_counter()
        for _ in range(samples):
            next(self._loader)
        return samples / (time.perf_counter() - start)

    def cpu_seconds(self) -> float:
        """Processor time of this process so far (Linux)."""
        with open(f'/proc/{self.process}/stat') as file:
            fields = file.read().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def private_mb(self) -> float:
        """Memory that only this process has (Linux)."""
        with open(f'/proc/{self.process}/smaps_rollup') as file:
            lines = [line.split() for line in file if line.startswith('Private_')]
        return sum(int(line[1]) for line in lines) * 1024 / 1e6


class _Endless(torch.utils.data.Sampler):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self):
        index = 0
        while True:
            yield index % self.length
            index += 1


def data_sample() -> Measurement:
    """One sample of training; the reference decodes every image whole."""
    keep_freed_memory()  # as tools/train.py does, whose workers inherit it
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root, [make_info(f'{i:032x}') for i in range(50)])
        sizes = [os.path.getsize(root / f'{name}.jpg') for name in CAMERAS]
        whole = _Worker(build_dataset(root, reduction=1))
        reference = whole.rate(REFERENCE_SAMPLES)
        del whole
        worker = _Worker(build_dataset(root))
        start = worker.cpu_seconds()
        rate = worker.rate(TIMED_SAMPLES)
        busy = (worker.cpu_seconds() - start) / TIMED_SAMPLES
        memory = [worker.private_mb()]
        for _ in range(4):
            worker.rate((MEMORY_SAMPLES - TIMED_SAMPLES) // 4)
            memory.append(worker.private_mb())
    read = sum(sizes) + 20 * SCAN_POINTS * (SWEEPS + 1)
    return Measurement(
        ours_ms=1e3 / rate, reference_ms=1e3 / reference, peak_mb=max(memory), traffic=float(read),
        conditions=f'one worker, 6 images of {np.mean(sizes) / 1e3:.0f} kB, '
                   f'{SCAN_POINTS * (SWEEPS + 1):,} points, map masks; waits of the training '
                   'process included; memory private to the worker',
        details={'samples_a_second': round(rate, 1),
                 'processor_time_of_the_worker_ms': round(1e3 * busy, 1),
                 f'worker_mb_over_{MEMORY_SAMPLES}_samples': [round(m) for m in memory]})
