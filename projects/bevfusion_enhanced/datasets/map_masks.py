"""Ground truth of the map task: a patch of nuScenes' vector map drawn on the BEV grid.

Frames: global x east, y north, in metres; LiDAR x right, y forward. `lidar2global` maps the
(augmented) LiDAR frame to the global frame. A mask is indexed [x, y]: index i runs along LiDAR x
from `xbound[0]`, index j along LiDAR y from `ybound[0]`.

Raster rules are those of nuscenes-devkit's `get_map_mask`, so that scores compare with published
ones: geometry is clipped to the patch, polygon vertices are rounded to pixels and both borders
filled, records are painted in order and the holes of a later one erase earlier paint, line vertices
are truncated and drawn 2 thick. There pixel k of a polygon stands at `bound[0] + k * step`; with
`raster='cell_center'` it stands at the centre of its cell, where the map head samples.

Against the devkit: the map is indexed once (STR-tree), all geometry of a patch is moved and clipped
in one vectorised call each, scale and mirror of an augmentation are followed, and geometry on which
the devkit fails (a line that leaves and re-enters, a polygon that only touches the patch) is drawn.

Shapes: G geometries of a map, C map classes, X and Y cells of the grid.
"""
import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Dict, List, Sequence, Tuple, Union

import cv2
import numpy as np
import shapely

from bevfusion_enhanced.datasets.vocabulary import LINE_LAYERS, MAP_LAYERS, POLYGON_LAYERS
from bevfusion_enhanced.errors import ConfigError, DataError

RASTERS = ('devkit', 'cell_center')
LAYERS = POLYGON_LAYERS + LINE_LAYERS


@dataclass(frozen=True)
class VectorMap:
    """The drawable geometry of one location.

    Attributes:
        geometries: (G,) shapely polygons and lines in global metres, in the order of painting.
        layers: (G,) int64 index into `LAYERS`.
        tree: Spatial index over `geometries`.
    """
    geometries: np.ndarray
    layers: np.ndarray
    tree: shapely.STRtree

    def covers(self, points: np.ndarray, layers: Sequence[str]) -> np.ndarray:
        """Whether each of (P, 2) points, global metres, lies on a geometry of some layers.

        Returns:
            (P,) bool. Unlike in a mask, a hole is no hole where another geometry covers it.
        """
        point, geometry = self.tree.query(shapely.points(points), predicate='intersects')
        wanted = np.isin(self.layers[geometry], [LAYERS.index(layer) for layer in layers])
        covered = np.zeros(len(points), dtype=bool)
        covered[point[wanted]] = True
        return covered


def map_file(data_root: Union[str, Path], location: str) -> Path:
    """Where the vector map of `location` lies under a dataset root."""
    return Path(data_root) / 'maps' / 'expansion' / f'{location}.json'


def require_maps(data_root: Union[str, Path]) -> None:
    """Check that there are vector maps at all.

    Raises:
        DataError: There are none.
    """
    folder = Path(data_root) / 'maps' / 'expansion'
    if not folder.is_dir():
        raise DataError(f"no vector maps: {folder} does not exist; unpack nuScenes' map expansion "
                        '(v1.3) into maps/ of the dataset root, or leave the map task out')


def require_map_files(data_root: Union[str, Path], locations: Sequence[str]) -> None:
    """Check that there is a vector map for each of `locations`.

    Raises:
        DataError: A map file is missing.
    """
    for location in locations:
        path = map_file(data_root, location)
        if not path.is_file():
            raise DataError(f'no vector map of location {location!r}: {path} does not exist; unpack'
                            " nuScenes' map expansion (v1.3) into maps/ of the dataset root")


@lru_cache(maxsize=8)
def load_vector_map(path: Path) -> VectorMap:
    """Read a map expansion file (v1.3); kept for the life of the process.

    Polygons that cross themselves are repaired in the drivable area and left out elsewhere, where
    the devkit leaves them out too.

    Raises:
        DataError: The file is missing, or is no map expansion file.
    """
    try:
        tables = json.loads(path.read_bytes())
        return _index(tables)
    except FileNotFoundError:
        raise DataError(f'vector map {path} does not exist') from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'vector map {path} cannot be read: {type(error).__name__} {error}; unpack '
                        "nuScenes' map expansion (v1.3) again") from None


def _index(tables: dict) -> VectorMap:
    nodes = {node['token']: (node['x'], node['y']) for node in tables['node']}
    polygons = {record['token']: record for record in tables['polygon']}
    lines = {record['token']: record['node_tokens'] for record in tables['line']}

    geometries: List[shapely.Geometry] = []
    layers: List[int] = []
    for index, layer in enumerate(LAYERS):
        records = tables[layer]
        if layer in LINE_LAYERS:
            found = _lines([lines[record['line_token']] for record in records], nodes)
        elif layer == 'drivable_area':
            tokens = chain.from_iterable(record['polygon_tokens'] for record in records)
            found = [shapely.make_valid(_polygon(polygons[token], nodes)) for token in tokens]
        else:
            found = [_polygon(polygons[record['polygon_token']], nodes) for record in records]
            found = [polygon for polygon in found if polygon.is_valid]
        geometries.extend(found)
        layers.extend([index] * len(found))
    array = np.empty(len(geometries), dtype=object)
    array[:] = geometries
    return VectorMap(array, np.array(layers, dtype=np.int64), shapely.STRtree(array))


def _polygon(record: dict, nodes: Dict[str, Tuple[float, float]]) -> shapely.Polygon:
    holes = [[nodes[token] for token in hole['node_tokens']] for hole in record['holes']]
    return shapely.Polygon([nodes[token] for token in record['exterior_node_tokens']],
                           [hole for hole in holes if len(hole) >= 3])


def _lines(token_lists: Sequence[Sequence[str]],
           nodes: Dict[str, Tuple[float, float]]) -> List[shapely.LineString]:
    return [shapely.LineString([nodes[token] for token in tokens])
            for tokens in token_lists if len(tokens) >= 2]


def bev_pose(lidar2global: np.ndarray, lidar_aug_matrix: np.ndarray) -> np.ndarray:
    """The (2, 3) affine map from the augmented LiDAR plane to the global plane.

    The sensor's small roll and pitch are dropped as the original BEVFusion does: the axis x keeps
    its heading, lengths are those of the augmentation, and a mirroring augmentation mirrors.

    Args:
        lidar2global: (4, 4) of the key frame, before augmentation.
        lidar_aug_matrix: (4, 4), rotation, flips and one scale (plus translation).
    """
    pose = np.asarray(lidar2global, np.float64) @ np.linalg.inv(
        np.asarray(lidar_aug_matrix, np.float64))
    determinant = np.linalg.det(pose[:3, :3])
    scale = np.cbrt(np.abs(determinant))
    yaw = np.arctan2(pose[1, 0], pose[0, 0])
    x_axis = scale * np.array([np.cos(yaw), np.sin(yaw)])
    y_axis = np.sign(determinant) * np.array([-x_axis[1], x_axis[0]])
    return np.stack([x_axis, y_axis, pose[:2, 3]], axis=1)


class MapMasks:
    """Draws map masks of one dataset root.

    Args:
        data_root: The folder that holds `maps/expansion/`.
        classes: Map classes, the order of the masks; keys of `MAP_LAYERS`.
        xbound: (first, last, step) of the grid along LiDAR x, metres.
        ybound: The same along LiDAR y.
        raster: 'devkit' or 'cell_center' (see the module).

    Raises:
        ConfigError: An unknown class or raster, or a bound that is no grid.
    """

    def __init__(self, *, data_root: Union[str, Path], classes: Sequence[str],
                 xbound: Sequence[float], ybound: Sequence[float], raster: str = 'devkit') -> None:
        unknown = [name for name in classes if name not in MAP_LAYERS]
        if unknown or not classes:
            raise ConfigError(f'map classes: {unknown or "none"} given; known: {list(MAP_LAYERS)}')
        if raster not in RASTERS:
            raise ConfigError(f'raster is {raster!r}; known: {list(RASTERS)}')
        self.data_root = Path(data_root)
        self.classes = tuple(classes)
        self.raster = raster
        self.origin = np.array([xbound[0], ybound[0]], dtype=np.float64)
        self.step = np.array([xbound[2], ybound[2]], dtype=np.float64)
        self.shape = (_cells('xbound', xbound), _cells('ybound', ybound))
        names = sorted({layer for name in classes for layer in MAP_LAYERS[name]})
        self._layer_ids = np.array([LAYERS.index(name) for name in names])
        self._slots = [[names.index(layer) for layer in MAP_LAYERS[name]] for name in classes]

    def rasterise(self, *, location: str, bev2global: np.ndarray) -> np.ndarray:
        """Draw the masks of one patch.

        Args:
            location: nuScenes' name of the map, such as 'boston-seaport'.
            bev2global: (2, 3) affine map from the BEV plane to the global plane (`bev_pose`).

        Returns:
            (C, X, Y) uint8, 0 or 1.

        Raises:
            DataError: There is no (readable) map of this location.
        """
        require_map_files(self.data_root, [location])
        vector_map = load_vector_map(map_file(self.data_root, location))
        pixels, layers = self._clip(vector_map, np.asarray(bev2global, dtype=np.float64))
        canvases = np.zeros((len(self._layer_ids), self.shape[1], self.shape[0]), dtype=np.uint8)
        for slot, layer in enumerate(self._layer_ids):
            members = pixels[layers == layer]
            if len(members) and LAYERS[layer] in LINE_LAYERS:
                _paint_lines(canvases[slot], members)
            elif len(members):
                _paint_polygons(canvases[slot], members, 0.5 * (self.raster == 'cell_center'))
        masks = np.stack([canvases[slots].max(axis=0) for slots in self._slots])  # (C, Y, X)
        return np.ascontiguousarray(masks.transpose(0, 2, 1))                      # (C, X, Y)

    def _clip(self, vector_map: VectorMap,
              bev2global: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Geometry that meets the patch, in pixels, clipped to it; and the layer of each."""
        linear, offset = bev2global[:, :2], bev2global[:, 2]
        width, height = self.shape
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
        corners = (corners * self.step + self.origin) @ linear.T + offset
        hits = vector_map.tree.query(shapely.box(*corners.min(axis=0), *corners.max(axis=0)))
        hits = np.sort(hits[np.isin(vector_map.layers[hits], self._layer_ids)])

        inverse = np.linalg.inv(linear)
        moved = shapely.transform(
            vector_map.geometries[hits],
            lambda points: ((points - offset) @ inverse.T - self.origin) / self.step)
        clipped = shapely.clip_by_rect(moved, 0, 0, width, height)
        keep = ~shapely.is_empty(clipped)
        return clipped[keep], vector_map.layers[hits[keep]]


def _cells(name: str, bound: Sequence[float]) -> int:
    if len(bound) != 3 or bound[2] <= 0 or bound[1] <= bound[0]:
        raise ConfigError(f'{name} is {list(bound)}; expected [first, last, step] in metres')
    return int(round((bound[1] - bound[0]) / bound[2]))


def _paint_polygons(canvas: np.ndarray, geometries: np.ndarray, shift: float) -> None:
    """Fill each geometry, then its holes with 0; one after the other, since order matters."""
    parts, part2geometry = shapely.get_parts(geometries, return_index=True)
    areas = shapely.get_dimensions(parts) == 2
    parts, part2geometry = parts[areas], part2geometry[areas]
    if not len(parts):
        return
    rings, ring2part = shapely.get_rings(parts, return_index=True)
    is_hole = np.diff(ring2part, prepend=-1) == 0
    contours = _contours(rings, lambda points: np.rint(points - shift))
    bounds = np.flatnonzero(np.diff(part2geometry[ring2part], prepend=-1))
    for first, last in zip(bounds, [*bounds[1:], len(rings)], strict=True):
        rings_of = list(zip(contours[first:last], is_hole[first:last], strict=True))
        holes = [ring for ring, is_inner in rings_of if is_inner]
        cv2.fillPoly(canvas, [ring for ring, is_inner in rings_of if not is_inner], 1)
        if holes:
            cv2.fillPoly(canvas, holes, 0)


def _paint_lines(canvas: np.ndarray, geometries: np.ndarray) -> None:
    parts = shapely.get_parts(geometries)
    parts = parts[shapely.get_dimensions(parts) == 1]
    if len(parts):
        cv2.polylines(canvas, _contours(parts, np.floor), False, 1, 2)


def _contours(curves: np.ndarray, to_pixels) -> List[np.ndarray]:
    """The vertices of each curve as OpenCV wants them: a list of (P, 2) int32."""
    points, point2curve = shapely.get_coordinates(curves, return_index=True)
    ends = np.flatnonzero(np.diff(point2curve)) + 1
    return np.split(to_pixels(points).astype(np.int32), ends)
