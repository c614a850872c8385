"""Map masks against the devkit's own drawing, on maps that are made up here.

The devkit reads the same files. Frames: global x east, y north, metres.
"""
import json
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from bevfusion_enhanced.benchmarks.measure import Measurement, peak_growth_mb, side_by_side
from bevfusion_enhanced.datasets.map_masks import MapMasks, bev_pose
from bevfusion_enhanced.datasets.vocabulary import MAP_CLASSES, MAP_LAYERS

LOCATION = 'singapore-onenorth'  # the devkit only opens maps whose names it knows
SIZE = (1585.6, 2025.0)  # metres, as the devkit has it for that name
BOUND = (-50.0, 50.0, 0.5)
EMPTY_LAYERS = ('road_block', 'traffic_light', 'lane_connector')
PATCHES = 12


class TownFile:
    """Writes a map expansion file of streets around blocks.

    Args:
        blocks: Along one side.
        corners: Of each shape.
    """

    def __init__(self, *, blocks: int, corners: int) -> None:
        self._tokens = (f'{number:032x}' for number in count())
        self._random = np.random.default_rng(0)
        self.tables: Dict[str, Any] = {name: [] for name in (
            'node', 'polygon', 'line', 'drivable_area', 'road_segment', 'lane', 'ped_crossing',
            'walkway', 'stop_line', 'carpark_area', 'road_divider', 'lane_divider',
            *EMPTY_LAYERS)}
        self.tables.update(version='1.3', canvas_edge=list(SIZE), arcline_path_3={},
                           connectivity={})
        block = min(SIZE) / blocks
        for x in np.arange(0.5, blocks) * block:
            for y in np.arange(0.5, SIZE[1] / block - 0.5) * block:
                self._block(np.array([x, y]), block, corners)

    def _block(self, centre: np.ndarray, block: float, corners: int) -> None:
        self._area('drivable_area', self._shape(centre, 0.62 * block, corners),
                   holes=[self._shape(centre, 0.3 * block, corners)])
        self._area('walkway', self._shape(centre, 0.3 * block, corners),
                   holes=[self._shape(centre, 0.2 * block, corners)])
        for layer, place, radius in (('ped_crossing', (0.45, 0), 4), ('stop_line', (0, 0.45), 2),
                                     ('carpark_area', (0.2, 0.2), 9), ('road_segment', (0.5, 0), 8),
                                     ('lane', (0, 0.5), 5)):
            self._area(layer, self._shape(centre + np.array(place) * block, radius, 6))
        for layer, shift in (('road_divider', 0.5), ('lane_divider', 0.44)):
            along = np.linspace(-0.45, 0.45, corners)[:, None] * [0, block]
            self._line(layer, centre + [shift * block, 0] + along)

    def _shape(self, centre: np.ndarray, radius: float, corners: int) -> np.ndarray:
        angle = 2 * np.pi * (np.arange(corners) + self._random.uniform(0.2, 0.8, corners)) / corners
        radii = radius * self._random.uniform(0.85, 1.0, corners)
        return centre + radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def _nodes(self, points: np.ndarray) -> List[str]:
        tokens = [next(self._tokens) for _ in points]
        self.tables['node'] += [dict(token=token, x=float(x), y=float(y))
                                for token, (x, y) in zip(tokens, points)]
        return tokens

    def _area(self, layer: str, points: np.ndarray, holes: Sequence[np.ndarray] = ()) -> None:
        token = next(self._tokens)
        self.tables['polygon'].append(dict(
            token=token, exterior_node_tokens=self._nodes(points),
            holes=[dict(node_tokens=self._nodes(hole)) for hole in holes]))
        record: Dict[str, Any] = dict(token=next(self._tokens), polygon_token=token)
        if layer == 'drivable_area':
            record['polygon_tokens'] = [record.pop('polygon_token')]
        if layer == 'lane':
            record.update(left_lane_divider_segments=[], right_lane_divider_segments=[])
        if layer == 'stop_line':
            record['stop_line_type'] = 'YIELD'
        self.tables[layer].append(record)

    def _line(self, layer: str, points: np.ndarray) -> None:
        token = next(self._tokens)
        self.tables['line'].append(dict(token=token, node_tokens=self._nodes(points)))
        self.tables[layer].append(dict(token=next(self._tokens), line_token=token))

    def write(self, root: Path) -> int:
        """Write the file below a dataset root; returns its number of nodes."""
        path = root / 'maps' / 'expansion' / f'{LOCATION}.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(self.tables))
        return len(self.tables['node'])


def _poses() -> List[Tuple[np.ndarray, float]]:
    """Centres and headings in degrees of vehicles all over the town."""
    generator = np.random.default_rng(1)
    centres = generator.uniform([100, 100], [SIZE[0] - 100, SIZE[1] - 100], (PATCHES, 2))
    return [(centre, float(angle))
            for centre, angle in zip(centres, generator.uniform(-180, 180, PATCHES))]


def _measure(*, blocks: int, corners: int) -> Measurement:
    from nuscenes.map_expansion.map_api import NuScenesMap

    with tempfile.TemporaryDirectory() as folder:
        nodes = TownFile(blocks=blocks, corners=corners).write(Path(folder))
        devkit = NuScenesMap(folder, LOCATION)
        masks = MapMasks(data_root=folder, classes=MAP_CLASSES, xbound=BOUND, ybound=BOUND)
        layers = list(dict.fromkeys(layer for name in MAP_CLASSES for layer in MAP_LAYERS[name]))
        extent = BOUND[1] - BOUND[0]
        cells = round(extent / BOUND[2])
        poses, turn = _poses(), iter(range(10 ** 9))

        def ours(index: int) -> np.ndarray:
            (x, y), degrees = poses[index]
            lidar2global = np.eye(4)
            yaw = np.deg2rad(degrees)
            lidar2global[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
            lidar2global[:2, 3] = x, y
            return masks.rasterise(location=LOCATION,
                                   bev2global=bev_pose(lidar2global, np.eye(4)))

        def reference(index: int) -> np.ndarray:
            (x, y), degrees = poses[index]
            drawn = devkit.get_map_mask((x, y, extent, extent), degrees, layers, (cells, cells))
            merged = [np.max([drawn[layers.index(layer)] for layer in MAP_LAYERS[name]], axis=0)
                      for name in MAP_CLASSES]
            return np.stack(merged).transpose(0, 2, 1)

        differing = np.mean([(ours(i) != reference(i)).mean() for i in range(PATCHES)])
        if differing > 1e-3:
            raise AssertionError(f'{differing:.2%} of the pixels differ from the devkit')
        mine, theirs = side_by_side(lambda: ours(next(turn) % PATCHES),
                                    lambda: reference(next(turn) % PATCHES), repeats=2 * PATCHES)
        peak = peak_growth_mb(lambda: ours(0))
    return Measurement(
        ours_ms=mine, reference_ms=theirs, peak_mb=peak,
        traffic=float(len(layers) * cells * cells * 2),
        conditions=f'{nodes:,} nodes, {len(MAP_CLASSES)} classes on {cells} x {cells} cells; the '
                   'reference is nuscenes-devkit',
        details={'pixels_that_differ': float(f'{differing:.2g}')})


def map_masks() -> Measurement:
    """A map of official size."""
    return _measure(blocks=16, corners=24)


def map_masks_small() -> Measurement:
    """A map of a few hundred nodes, where the devkit has little to search."""
    return _measure(blocks=2, corners=8)
