"""Writes map expansion files (v1.3) of a made-up grid town, with everything a rasteriser must
handle: holes, overlaps, records whose holes erase earlier paint, oblique shapes, split dividers."""
import json
from itertools import count
from pathlib import Path

import numpy as np

LAYERS = ('drivable_area', 'road_segment', 'road_block', 'lane', 'ped_crossing', 'walkway',
          'stop_line', 'carpark_area', 'road_divider', 'lane_divider', 'traffic_light',
          'lane_connector')


class MapWriter:
    def __init__(self, size: tuple) -> None:
        self.tables = {name: [] for name in ('polygon', 'line', 'node') + LAYERS}
        self.tables.update(version='1.3', canvas_edge=list(size), arcline_path_3={},
                           connectivity={})
        self._ids = (f'{number:032x}' for number in count())

    def nodes(self, points: np.ndarray) -> list:
        tokens = [next(self._ids) for _ in points]
        self.tables['node'] += [{'token': token, 'x': float(x), 'y': float(y)}
                                for token, (x, y) in zip(tokens, points, strict=True)]
        return tokens

    def polygon(self, layer: str, points: np.ndarray, holes: tuple = ()) -> None:
        token = next(self._ids)
        self.tables['polygon'].append({
            'token': token, 'exterior_node_tokens': self.nodes(points),
            'holes': [{'node_tokens': self.nodes(hole)} for hole in holes]})
        record = {'token': next(self._ids)}
        if layer == 'drivable_area':
            record['polygon_tokens'] = [token]
        else:
            record['polygon_token'] = token
        if layer == 'lane':
            record.update(left_lane_divider_segments=[], right_lane_divider_segments=[])
        if layer == 'stop_line':
            record['stop_line_type'] = 'YIELD'
        self.tables[layer].append(record)

    def line(self, layer: str, points: np.ndarray) -> None:
        token = next(self._ids)
        self.tables['line'].append({'token': token, 'node_tokens': self.nodes(points)})
        self.tables[layer].append({'token': next(self._ids), 'line_token': token})

    def write(self, root: Path, location: str) -> Path:
        path = root / 'maps' / 'expansion' / f'{location}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.tables))
        return path


def blob(rng: np.random.Generator, centre: np.ndarray, radius: float, corners: int) -> np.ndarray:
    """A star-shaped polygon around `centre`, never self-crossing."""
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(0.2, 0.8, corners)) / corners
    radii = radius * rng.uniform(0.7, 1.0, corners)
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def write_grid_town(root: Path, *, location: str, size: tuple, block: float, corners: int,
                    seed: int = 0) -> Path:
    """Streets around blocks of `block` metres; `corners` vertices a shape set the file's size."""
    rng = np.random.default_rng(seed)
    writer = MapWriter(size)
    width, height = size
    centres = np.stack(np.meshgrid(np.arange(block, width - block / 2, block),
                                   np.arange(block, height - block / 2, block)), -1).reshape(-1, 2)
    centres = centres + rng.uniform(-2, 2, centres.shape)
    edge = np.array([[3.1, 2.3], [width - 1.7, 4.2], [width - 2.9, height - 3.3],
                     [1.3, height - 2.1]])
    writer.polygon('drivable_area', edge,
                   tuple(blob(rng, centre, 0.35 * block, corners) for centre in centres))
    for centre in centres[::5]:
        writer.polygon('drivable_area', blob(rng, centre, 0.3 * block, corners),
                       (blob(rng, centre, 0.06 * block, 8),))
    for centre in centres:
        step = block * rng.uniform(-0.5, 0.5, 2)
        writer.polygon('walkway', blob(rng, centre, 0.33 * block, corners),
                       (blob(rng, centre, 0.1 * block, corners),))
        writer.polygon('ped_crossing', blob(rng, centre + step, 6.0, 5))
        writer.polygon('stop_line', blob(rng, centre - step, 3.0, 5))
        writer.polygon('carpark_area', blob(rng, centre + step[::-1], 9.0, 7))
        writer.polygon('road_segment', blob(rng, centre + block / 2, 0.3 * block, corners))
        writer.polygon('lane', blob(rng, centre + block / 2, 0.25 * block, corners))
        for layer, shift in (('road_divider', 0.5), ('lane_divider', 0.42)):
            start = centre + shift * block
            writer.line(layer, np.stack([start, start + rng.uniform(-1, 1, 2) * block]))
    return writer.write(root, location)
