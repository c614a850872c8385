"""How cost grows with the size of the input; each gives a table and the exponent.

`ours_ms` is the time at the largest size.
"""
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import Tensor

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.benchmarks.measure import (
    Measurement,
    exponent,
    process_peak_mb,
    resident_mb,
    scaling,
)
from bevfusion_enhanced.benchmarks.operators import MAP_SIZE, coder
from bevfusion_enhanced.benchmarks.pooling import CHANNELS, transform
from bevfusion_enhanced.benchmarks.whole_model import build_model
from bevfusion_enhanced.models.camera.geometry import frustum_cells
from bevfusion_enhanced.models.heads.transfusion_targets import Truth, heatmap_targets
from bevfusion_enhanced.ops.bev_pool import bev_pool, plan_pooling
from bevfusion_enhanced.ops.depth_map import depth_maps
from bevfusion_enhanced.ops.voxelize import voxelize


def _measurement(tables: Dict[str, Dict[str, Any]], conditions: str) -> Measurement:
    return Measurement(ours_ms=sum(table['ms'][-1] for table in tables.values()),
                       peak_mb=process_peak_mb(), conditions=conditions, details=tables)


def _without_gradient(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return call()
    return run


def points() -> Measurement:
    """Points of a cloud: voxelization, depth maps, and the sparse encoder."""
    sizes = (50_000, 100_000, 200_000, 400_000, 600_000)
    rig = scene.rig()
    encoder = build_model(with_map=False).encoders['lidar']

    def voxels(size: int) -> Callable[[], Any]:
        cloud = scene.cloud(size)
        return lambda: voxelize([cloud], point_cloud_range=scene.RANGE, voxel_size=scene.VOXEL,
                                max_num_points=10, max_voxels=160_000)

    def depth(size: int) -> Callable[[], Any]:
        cloud = scene.cloud(size)
        return lambda: depth_maps([cloud], lidar2img=rig.lidar2img,
                                  img_aug_matrix=rig.img_aug_matrix,
                                  lidar_aug_matrix=rig.lidar_aug_matrix,
                                  image_size=scene.IMAGE_SIZE)

    def encode(size: int) -> Callable[[], Any]:
        cloud = scene.cloud(size)
        return _without_gradient(lambda: encoder([cloud]))

    return _measurement({'voxelize': scaling('points', sizes, voxels),
                         'depth_map': scaling('points', sizes, depth),
                         'lidar_encoder': scaling('points', sizes, encode, repeats=2)},
                        'one cloud; six cameras')


def cameras() -> Measurement:
    """Cameras of the rig: the whole camera branch."""
    encoder = build_model(with_map=False).encoders['camera']
    cloud = [scene.cloud()]

    def encode(count: int) -> Callable[[], Any]:
        images = scene.images(cameras=count).float()
        rig = scene.rig(cameras=count)
        return _without_gradient(lambda: encoder(images, cloud, rig))

    return _measurement({'camera_encoder': scaling('cameras', (1, 2, 4, 8, 12), encode, repeats=2)},
                        'images of 256 x 704')


def image() -> Measurement:
    """Pixels of an image: backbone, neck and view transform."""
    encoder = build_model(with_map=False).encoders['camera']
    cloud = [scene.cloud()]
    heights = {height * height * 11 // 4: height for height in (128, 192, 256, 384)}

    def encode(pixels: int) -> Callable[[], Any]:
        height = heights[pixels]
        size = (height, height * 11 // 4)
        images = scene.images(image_size=size).float()
        rig = scene.rig(image_size=size)
        encoder.vtransform = transform(image_size=size)
        return _without_gradient(lambda: encoder(images, cloud, rig))

    return _measurement(
        {'camera_encoder': scaling('pixels of an image', list(heights), encode, repeats=2)},
        'six cameras')


def bev_cells() -> Measurement:
    """Cells of the map: pooling onto it, and the decoder over it."""
    sides = {side * side: side for side in (128, 180, 256, 360, 512)}
    model = build_model(with_map=False)
    rig = scene.rig()

    def pool(cells: int) -> Callable[[], Any]:
        module = transform(cell=108 / sides[cells])
        index = frustum_cells(module.frustum, module.grid, rig)
        plan = plan_pooling(index, num_cells=cells)
        depth = torch.rand(index.shape)
        context = torch.randn(len(index), CHANNELS)
        return lambda: bev_pool(depth, context, plan)

    def decode(cells: int) -> Callable[[], Any]:
        side = sides[cells]
        bev = torch.randn(1, 256, side, side).contiguous(memory_format=torch.channels_last)
        return _without_gradient(
            lambda: model.decoder['neck'](model.decoder['backbone'](bev)))

    return _measurement({'bev_pool': scaling('cells', list(sides), pool),
                         'decoder': scaling('cells', list(sides), decode, repeats=2)},
                        'one sample; pooled from six cameras')


def classes() -> Measurement:
    """Classes: heatmap targets of the detection head, logits of the map head."""
    from bevfusion_enhanced.models.heads import EnhancedBEVSegmentationHead

    sizes = (1, 2, 5, 10, 20)
    scope = [[-54.0, 54.0, 0.6]] * 2
    bev = torch.randn(1, 512, 180, 180)

    def targets(count: int) -> Callable[[], Any]:
        truth, labels = scene.boxes(10 * count, classes=count)
        return lambda: heatmap_targets([Truth(truth, labels)], coder(), num_classes=count,
                                       map_size=MAP_SIZE, min_overlap=0.1, min_radius=2)

    def map_head(count: int) -> Callable[[], Tensor]:
        head = EnhancedBEVSegmentationHead(
            in_channels=512, classes=[str(i) for i in range(count)],
            grid_transform=dict(input_scope=scope, output_scope=[[-50.0, 50.0, 0.5]] * 2)).eval()
        return _without_gradient(lambda: head(bev))

    return _measurement({'heatmap_targets': scaling('classes', sizes, targets, repeats=9),
                         'map_head': scaling('classes', sizes, map_head, repeats=2)},
                        'ten boxes a class; 200 x 200 map cells')


def infos() -> Measurement:
    """Samples of a dataset: reading the info file, and reaching one sample."""
    from bevfusion_enhanced.benchmarks.data import build_dataset, make_info
    from bevfusion_enhanced.datasets.info_files import write_info_file
    from bevfusion_enhanced.datasets.vocabulary import INFO_CLASSES

    sizes = (10, 100, 1000, 10_000, 100_000)
    opened: List[float] = []
    reached: List[float] = []
    memory: List[float] = []
    one = make_info('0' * 32, sweeps=1, boxes=2)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            write_info_file(dict(
                metainfo=dict(categories={n: i for i, n in enumerate(INFO_CLASSES)},
                              version='v1.0-trainval'),
                data_list=[dict(one, token=f'{i:032x}') for i in range(size)]),
                Path(folder, 'infos.pkl'))
            before, start = resident_mb(), time.perf_counter()
            dataset = build_dataset(Path(folder), pipeline=False)
            opened.append(1e3 * (time.perf_counter() - start))
            memory.append(resident_mb() - before)
            reached.append(_reach(dataset, size))
            del dataset
    tables = {'open_dataset': _table(sizes, opened), 'one_sample': _table(sizes, reached),
              'resident_growth_mb': [round(m, 1) for m in memory]}
    return Measurement(ours_ms=opened[-1], peak_mb=process_peak_mb(), details=tables,
                       conditions='six cameras, one sweep and two boxes a sample')


def _reach(dataset: Any, size: int) -> float:
    start, count = time.perf_counter(), 300
    for i in range(count):
        dataset.get_data_info(i * 7919 % size)
    return 1e3 * (time.perf_counter() - start) / count


def _table(sizes: Sequence[int], times: Sequence[float]) -> Dict[str, Any]:
    return {'size': 'samples', 'sizes': list(sizes), 'ms': [round(t, 3) for t in times],
            'exponent': round(exponent(sizes, times), 2),
            'exponent_at_the_end': round(exponent(sizes[-2:], times[-2:]), 2)}
