"""What goes wrong on a road, to test robustness: cameras lost, sensors late, a rig out of true.

These are not augmentations: they belong into a test pipeline, and the model is not told. What is
drawn at random is drawn from the seed and the sample's token alone, so it is the same in every run,
in any process and in any order. `a2b` maps homogeneous column vectors from a to b, metres.

Shapes: N cameras, H and W of an image.
"""
import zlib
from typing import List, Optional, Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from scipy.spatial.transform import Rotation

from bevfusion_enhanced.datasets.encoded_image import black_like
from bevfusion_enhanced.errors import ConfigError, DataError

_BY_CAMERA = ('img', 'img_path', 'camera_names', 'image_sizes', 'cam2img', 'lidar2cam', 'cam2lidar',
              'lidar2img', 'img_aug_matrix')


def _generator(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


@TRANSFORMS.register_module()
class DropCameras(BaseTransform):
    """Lose cameras: chosen ones, or a number of them drawn for each sample.

    To be placed after `LoadMultiViewImages`. A lost camera's image is black (0, before the images
    are normalised), as of a camera that sends nothing, and its calibration stays; the model still
    looks at it. With `remove` the camera, its image and its calibration are gone, as on a vehicle
    that never had it: the model sees N - 1 cameras.

    Args:
        cameras: Names of the lost ones.
        count: How many are lost, in place of `cameras`.
        remove: See above.
        seed: Of the draw.

    Raises:
        ConfigError: Neither or both of `cameras` and `count`, or a camera that is not there, or
            none would be left with `remove`.
    """

    def __init__(self, *, cameras: Sequence[str] = (), count: int = 0, remove: bool = False,
                 seed: int = 0) -> None:
        if bool(cameras) == bool(count) or count < 0:
            raise ConfigError(f'DropCameras: cameras {list(cameras)}, count {count}; give the '
                              'names of cameras or a number of them')
        self.cameras = tuple(cameras)
        self.count = count
        self.remove = remove
        self.seed = seed

    def transform(self, results: dict) -> dict:
        """Lose the cameras; see the class."""
        lost = self._lost(results)
        results = dict(results)
        if not self.remove:
            results['img'] = [black_like(image) if index in lost else image
                              for index, image in enumerate(results['img'])]
            return results
        kept = [index for index in range(len(results['img'])) if index not in lost]
        if not kept:
            raise ConfigError('DropCameras: no camera would be left; lose fewer, or do not remove '
                              'them')
        for key in _BY_CAMERA:
            value = results[key]
            results[key] = (value[kept] if isinstance(value, np.ndarray)
                            else [value[index] for index in kept])
        return results

    def _lost(self, results: dict) -> List[int]:
        names = list(results['camera_names'])
        unknown = [name for name in self.cameras if name not in names]
        if unknown or self.count > len(names):
            raise ConfigError(f'DropCameras: {unknown or self.count} of the cameras {names}: there '
                              'are no such, or not so many')
        if self.cameras:
            return [names.index(name) for name in self.cameras]
        generator = _generator(self.seed, results['token'])
        return generator.choice(len(names), self.count, replace=False).tolist()


@TRANSFORMS.register_module()
class DelayPoints(BaseTransform):
    """The LiDAR is one sweep late, and nobody knows: the last sweep but one counts as the newest.

    To be placed before `LoadPointsWithSweeps`. The points stay in the frame in which that sweep
    was taken, 0.05 s ago, so they lie where the vehicle was. The sweeps before it keep their place
    and their time relative to it. A sample without sweeps, the first of a scene, stays as it is.
    """

    def transform(self, results: dict) -> dict:
        """Delay the points; see the class."""
        sweeps = results.get('lidar_sweeps', [])
        if not sweeps:
            return results
        newest, *older = sweeps
        newest2key = np.linalg.inv(np.asarray(newest['lidar_points']['lidar2sensor'], np.float64))
        late = results['timestamp'] - newest['timestamp']
        moved = [{**sweep, 'timestamp': sweep['timestamp'] + late, 'lidar_points': {
            **sweep['lidar_points'],
            'lidar2sensor': np.asarray(sweep['lidar_points']['lidar2sensor']) @ newest2key}}
            for sweep in older]
        points = {**results['lidar_points'], 'lidar_path': newest['lidar_points']['lidar_path']}
        return {**results, 'lidar_points': points, 'lidar_sweeps': moved}


@TRANSFORMS.register_module()
class DelayImages(BaseTransform):
    """The cameras are one image late, and nobody knows: each shows its image before.

    To be placed before `LoadMultiViewImages`. That is 1/12 s in nuScenes; in a dataset without
    camera sweeps it is the key frame before. The calibration stays. The first images of a scene
    have none before them and stay as they are.

    Args:
        cameras: Names of the late ones; None for all.

    Raises:
        ConfigError: A camera that is not there.
        DataError: The info file does not name the images before.
    """

    def __init__(self, *, cameras: Optional[Sequence[str]] = None) -> None:
        self.cameras = None if cameras is None else tuple(cameras)

    def transform(self, results: dict) -> dict:
        """Delay the images; see the class."""
        images = dict(results['images'])
        unknown = [name for name in self.cameras or () if name not in images]
        if unknown:
            raise ConfigError(f'DelayImages: there is no camera {unknown}; known: {list(images)}')
        for name in self.cameras or images:
            if 'previous' in images[name]:
                images[name] = {**images[name], 'img_path': images[name]['previous']['img_path']}
            elif results.get('prev') != '':
                raise DataError(f'sample {results["token"]}: its info file does not name the image '
                                f'of {name} before; make it again with tools/create_data.py')
        return {**results, 'images': images}


@TRANSFORMS.register_module()
class CalibrationNoise(BaseTransform):
    """Turn and move each camera against what the calibration says, the same way in every sample.

    To be placed after `LoadMultiViewImages`. What changes is what the model believes (`cam2lidar`,
    `lidar2cam`, `lidar2img`); images and points stay.

    Args:
        rotation_deg: Standard deviation of the turn about each axis of a camera, degrees.
        translation_cm: Standard deviation of the shift along each, centimetres.
        seed: Of the draw; each camera's is its own.

    Raises:
        ConfigError: A negative deviation.
    """

    def __init__(self, *, rotation_deg: float, translation_cm: float, seed: int = 0) -> None:
        if min(rotation_deg, translation_cm) < 0:
            raise ConfigError(f'CalibrationNoise: rotation_deg {rotation_deg} and translation_cm '
                              f'{translation_cm} must not be negative')
        self.rotation_deg = rotation_deg
        self.translation_cm = translation_cm
        self.seed = seed

    def transform(self, results: dict) -> dict:
        """Believe another calibration; see the class."""
        noise = np.stack([self.noise(name) for name in results['camera_names']])      # (N, 4, 4)
        cam2lidar = results['cam2lidar'].astype(np.float64) @ noise
        lidar2cam = np.linalg.inv(cam2lidar)
        believed = dict(cam2lidar=cam2lidar, lidar2cam=lidar2cam,
                        lidar2img=results['cam2img'].astype(np.float64) @ lidar2cam)
        return {**results, **{name: value.astype(np.float32) for name, value in believed.items()}}

    def noise(self, camera: str) -> np.ndarray:
        """(4, 4) from the camera as it is believed to stand to the camera as calibrated."""
        generator = _generator(self.seed, camera)
        turn, shift = generator.normal(size=(2, 3))
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(turn * self.rotation_deg, degrees=True).as_matrix()
        matrix[:3, 3] = shift * self.translation_cm / 100
        return matrix
