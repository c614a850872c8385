"""Reading a sample's sensor files: camera images and the LiDAR scan with its sweeps.

Frames: LiDAR x right, y forward, z up, metres, at the key frame's time. Pixel coordinates are
continuous, u right and v down: pixel (column 0, row 0) covers [0, 1) x [0, 1), as in the matrices
of the original BEVFusion. `a2b` maps homogeneous column vectors from a to b.

Shapes: N cameras, P points, H and W of an image.
"""
from typing import List, Optional, Sequence, Union

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures.points import LiDARPoints

from bevfusion_enhanced.datasets.encoded_image import REDUCTIONS, EncodedImage
from bevfusion_enhanced.datasets.lidar_beams import check_beams, reduce_beams
from bevfusion_enhanced.datasets.point_columns import move_points
from bevfusion_enhanced.errors import ConfigError, DataError

AUTOMATIC = 'auto'


def _read_bytes(path: str, *, dtype: type, sample: str, what: str) -> np.ndarray:
    try:
        return np.fromfile(path, dtype=dtype)
    except OSError as error:
        raise DataError(f'cannot read the {what} of sample {sample}: {path}: '
                        f'{error.strerror or error}') from None


@TRANSFORMS.register_module()
class LoadMultiViewImages(BaseTransform):
    """Read the images of a sample and the matrices that go with them.

    Required keys: `images` (one entry a camera: img_path, cam2img, lidar2cam), `token`. Added keys:
    `img` (list of N (H, W, 3) uint8 RGB, or of N `EncodedImage`), `img_path`, `camera_names`,
    `image_sizes` (N, 2: height and width of the files), and float32 (N, 4, 4) `cam2img`,
    `lidar2cam`, `cam2lidar`, `lidar2img` (of the files' pixels), `img_aug_matrix` (files' pixels to
    `img`'s).

    Args:
        cameras: Names of the cameras in the order of N; None takes all in the info file's order.
        reduction: Decode at 1/reduction of the file's size (1, 2, 4 or 8), which costs a JPEG
            decoder much less than to decode all and shrink. For images that are shrunk anyway.
            'auto' leaves decoding to `ImageAug3D`, which knows how much each image shrinks.

    Raises:
        ConfigError: An impossible reduction, or a camera that the info file does not have.
        DataError: An image is missing or unreadable; names the file and the sample.
    """

    def __init__(self, *, cameras: Optional[Sequence[str]] = None,
                 reduction: Union[int, str] = 1) -> None:
        if reduction not in (*REDUCTIONS, AUTOMATIC):
            raise ConfigError(f'reduction is {reduction}; an image decodes at 1/1, 1/2, 1/4 or '
                              f'1/8, or {AUTOMATIC!r} chooses')
        self.cameras = None if cameras is None else tuple(cameras)
        self.reduction = reduction

    def transform(self, results: dict) -> dict:
        """Read the images; see the class."""
        views = self._views(results)
        files = [self._read(view['img_path'], results['token']) for view in views]
        automatic = self.reduction == AUTOMATIC
        reduction = 1 if automatic else self.reduction
        results['img'] = files if automatic else [file.decode(reduction) for file in files]
        results['img_path'] = [view['img_path'] for view in views]
        results['camera_names'] = list(self.cameras or results['images'])
        results['image_sizes'] = np.array(
            [image.shape[:2] for image in results['img']] if self.reduction == 1 else
            [file.size for file in files])

        cam2img = np.tile(np.eye(4), (len(views), 1, 1))
        cam2img[:, :3, :3] = [np.asarray(view['cam2img'])[:3, :3] for view in views]
        lidar2cam = np.array([view['lidar2cam'] for view in views], dtype=np.float64)
        shrink = np.diag([1 / reduction, 1 / reduction, 1, 1])
        matrices = dict(cam2img=cam2img, lidar2cam=lidar2cam, cam2lidar=np.linalg.inv(lidar2cam),
                        lidar2img=cam2img @ lidar2cam,
                        img_aug_matrix=np.tile(shrink, (len(views), 1, 1)))
        results.update({name: value.astype(np.float32) for name, value in matrices.items()})
        results.setdefault('lidar_aug_matrix', np.eye(4, dtype=np.float32))
        return results

    def _views(self, results: dict) -> List[dict]:
        images = results['images']
        missing = [name for name in self.cameras or () if name not in images]
        if missing:
            raise ConfigError(f'sample {results["token"]} has no camera {missing}; it has '
                              f'{list(images)}')
        return [images[name] for name in self.cameras or images]

    def _read(self, path: str, sample: str) -> EncodedImage:
        data = _read_bytes(path, dtype=np.uint8, sample=sample, what='image')
        return EncodedImage(data, path=path, sample=sample)


@TRANSFORMS.register_module()
class LoadPointsWithSweeps(BaseTransform):
    """Read the key frame's scan and the sweeps before it, all in the key frame's LiDAR frame.

    Required keys: `lidar_points`, `timestamp`, `token`, and `lidar_sweeps` where the sample has any
    (newest first). Added key: `points`, LiDARPoints with columns x, y, z, intensity, time lag in
    seconds (0 for the key frame, positive into the past); `num_pts_feats`.

    Args:
        sweeps_num: How many sweeps to add at most.
        load_dim: Columns of the files; the last one (ring) makes place for the time lag.
        use_dim: How many leading columns to keep.
        remove_close: Drop points of sweeps that are nearer than this to the sensor in both x and y,
            metres: the vehicle itself.
        pad_empty_sweeps: Repeat the key frame where there is no sweep at all, as MMDetection3D
            does.
        random_sweeps: Draw the sweeps at random instead of taking the newest (training only).
        beams: Keep so many of the sensor's 32 beams, in each scan (`lidar_beams.py`); None for all.

    Raises:
        ConfigError: Column counts that do not fit each other.
        DataError: A file is missing, cut short or empty; names the file and the sample.
    """

    def __init__(self, *, sweeps_num: int = 0, load_dim: int = 5, use_dim: int = 5,
                 remove_close: float = 1.0, pad_empty_sweeps: bool = False,
                 random_sweeps: bool = False, beams: Optional[int] = None) -> None:
        if not 3 <= use_dim <= load_dim or load_dim < 5:
            raise ConfigError(f'load_dim {load_dim}, use_dim {use_dim}: expected '
                              '3 <= use_dim <= load_dim and load_dim >= 5')
        self.sweeps_num = sweeps_num
        self.load_dim = load_dim
        self.use_dim = use_dim
        self.remove_close = remove_close
        self.pad_empty_sweeps = pad_empty_sweeps
        self.random_sweeps = random_sweeps
        self.beams = None if beams is None else check_beams(beams)

    def transform(self, results: dict) -> dict:
        """Read the points; see the class."""
        key = self._read(results['lidar_points']['lidar_path'], results['token'])
        key[:, 4] = 0
        clouds = [key]
        sweeps = results.get('lidar_sweeps', [])
        for sweep in self._choose(sweeps):
            clouds.append(self._sweep(sweep, results['timestamp'], results['token']))
        if self.pad_empty_sweeps and not sweeps:
            clouds += [self._far(key)] * self.sweeps_num

        points = np.concatenate(clouds) if len(clouds) > 1 else key                # (P, load_dim)
        results['points'] = LiDARPoints(points[:, :self.use_dim], points_dim=self.use_dim)
        results['num_pts_feats'] = self.use_dim
        results.setdefault('lidar_aug_matrix', np.eye(4, dtype=np.float32))
        return results

    def _choose(self, sweeps: Sequence[dict]) -> List[dict]:
        if not self.random_sweeps or len(sweeps) <= self.sweeps_num:
            return list(sweeps[:self.sweeps_num])
        chosen = np.random.choice(len(sweeps), self.sweeps_num, replace=False)
        return [sweeps[index] for index in np.sort(chosen)]

    def _sweep(self, sweep: dict, timestamp: float, sample: str) -> np.ndarray:
        points = self._far(self._read(sweep['lidar_points']['lidar_path'], sample))
        sweep2key = np.linalg.inv(np.asarray(sweep['lidar_points']['lidar2sensor'], np.float64))
        move_points(points, sweep2key, out=points)
        points[:, 4] = timestamp - sweep['timestamp']
        return points

    def _far(self, points: np.ndarray) -> np.ndarray:
        far = np.abs(points[:, 0]) >= self.remove_close
        far |= np.abs(points[:, 1]) >= self.remove_close
        return points.compress(far, axis=0)

    def _read(self, path: str, sample: str) -> np.ndarray:
        values = _read_bytes(path, dtype=np.uint8, sample=sample, what='LiDAR scan')
        record = 4 * self.load_dim
        if values.size == 0:
            raise DataError(f'the LiDAR scan of sample {sample} is empty: {path}; fetch the file '
                            'again')
        if values.size % record:
            raise DataError(f'the LiDAR scan of sample {sample} is cut short: {path} has '
                            f'{values.size} '
                            f'bytes, no multiple of {record}; fetch the file again')
        points = values.view('<f4').reshape(-1, self.load_dim)                     # (P, load_dim)
        return points if self.beams is None else reduce_beams(points, self.beams)
