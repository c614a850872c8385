"""A scene's key frames from the tables of nuScenes, as entries of an info file.

The form is MMDetection3D's v2, readable by its own dataset and metric, with more in each entry:
location, scene_token, scene_name, scene_description, prev, next, and for each image ego2global,
height, width and, where there is one, `previous`: path below the root and time of the camera's
image before it. The cameras are those of the table of sensors, nuScenes' six first. Camera-wise 2D
boxes (`cam_instances`) are not written.

Frames: global; ego x forward, y left; LiDAR x right, y forward; camera x right, y down, z forward;
z up where not said, metres and radians. `a2b` maps column vectors from a to b, as nested lists of
floats. Boxes are in the LiDAR frame: x, y, z of the centre, length, width, height, yaw
counter-clockwise from x.

Shapes: M annotations of a sample.
"""
from pathlib import Path
from typing import Iterator, List, Sequence

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from scipy.spatial.transform import Rotation

from bevfusion_enhanced.datasets.vocabulary import CAMERAS, INFO_CLASSES
from bevfusion_enhanced.errors import DataError


class SceneReader:
    """Turns the tables of a scene into info entries.

    Args:
        database: The devkit's.
        max_sweeps: LiDAR sweeps that an entry lists at most.
    """

    def __init__(self, database: NuScenes, max_sweeps: int) -> None:
        self.database = database
        self.max_sweeps = max_sweeps
        named = {sensor['channel'] for sensor in database.sensor if sensor['modality'] == 'camera'}
        known = [camera for camera in CAMERAS if camera in named]
        self.cameras = (*known, *sorted(named.difference(known)))

    def scene(self, scene: dict) -> List[dict]:
        """The entries of a scene's key frames in time, without `sample_idx`.

        Raises:
            DataError: The tables refer to a record or channel that is not there.
        """
        location = self.database.get('log', scene['log_token'])['location']
        try:
            return [{**self.sample(sample), 'location': location, 'scene_token': scene['token'],
                     'scene_name': scene['name'], 'scene_description': scene['description']}
                    for sample in self.samples(scene)]
        except KeyError as error:
            raise DataError(f'tables of {scene["name"]}: no record or channel {error}') from None

    def samples(self, scene: dict) -> Iterator[dict]:
        """The sample records of a scene in time."""
        token = scene['first_sample_token']
        while token:
            sample = self.database.get('sample', token)
            yield sample
            token = sample['next']

    def sample(self, sample: dict) -> dict:
        """The entry of one key frame, without what belongs to its scene."""
        lidar = self.database.get('sample_data', sample['data']['LIDAR_TOP'])
        lidar2ego, ego2global = self._sensor2ego(lidar), self._ego2global(lidar)
        lidar2global = ego2global @ lidar2ego
        info = dict(
            token=sample['token'], timestamp=sample['timestamp'] / 1e6, prev=sample['prev'],
            next=sample['next'], ego2global=ego2global.tolist(),
            lidar_points=dict(num_pts_feats=5, lidar_path=Path(lidar['filename']).name,
                              lidar2ego=lidar2ego.tolist()),
            images={camera: self._image(self.database.get('sample_data', sample['data'][camera]),
                                        lidar2global) for camera in self.cameras},
            instances=self._instances(sample, lidar2global))
        sweeps = self._sweeps(lidar, lidar2global)
        if sweeps:  # the v2 form has no key where there is none
            info['lidar_sweeps'] = sweeps
        return info

    def missing_files(self, scene: dict) -> List[str]:
        """Sensor files of a scene's key frames and of their sweeps that are not on disk."""
        root = Path(self.database.dataroot)
        files = {}
        for sample in self.samples(scene):
            for channel in ('LIDAR_TOP', *self.cameras):
                record = self.database.get('sample_data', sample['data'][channel])
                files[record['filename']] = sample['token']
            for record in self._sweep_records(
                    self.database.get('sample_data', sample['data']['LIDAR_TOP'])):
                files.setdefault(record['filename'], sample['token'])
        return [f'{root / name} (sample {token})' for name, token in files.items()
                if not (root / name).is_file()]

    def _image(self, camera: dict, lidar2global: np.ndarray) -> dict:
        calibration = self.database.get('calibrated_sensor', camera['calibrated_sensor_token'])
        cam2ego, ego2global = self._sensor2ego(camera), self._ego2global(camera)
        lidar2cam = _inverse(ego2global @ cam2ego) @ lidar2global
        image = dict(img_path=Path(camera['filename']).name,
                     cam2img=calibration['camera_intrinsic'], cam2ego=cam2ego.tolist(),
                     sample_data_token=camera['token'], timestamp=camera['timestamp'] / 1e6,
                     lidar2cam=lidar2cam.tolist(), ego2global=ego2global.tolist(),
                     height=camera['height'], width=camera['width'])
        if camera['prev']:
            previous = self.database.get('sample_data', camera['prev'])
            image['previous'] = dict(img_path=previous['filename'],
                                     timestamp=previous['timestamp'] / 1e6)
        return image

    def _sweep_records(self, lidar: dict) -> List[dict]:
        """The scans before a key frame's, newest first; earlier key frames are among them."""
        records = []
        while lidar['prev'] and len(records) < self.max_sweeps:
            lidar = self.database.get('sample_data', lidar['prev'])
            records.append(lidar)
        return records

    def _sweeps(self, lidar: dict, lidar2global: np.ndarray) -> List[dict]:
        sweeps = []
        for record in self._sweep_records(lidar):
            sensor2ego, ego2global = self._sensor2ego(record), self._ego2global(record)
            lidar2sensor = _inverse(ego2global @ sensor2ego) @ lidar2global
            sweeps.append(dict(
                timestamp=record['timestamp'] / 1e6, sample_data_token=record['token'],
                ego2global=ego2global.tolist(),
                lidar_points=dict(lidar_path=record['filename'], num_pts_feats=5,
                                  lidar2ego=sensor2ego.tolist(),
                                  lidar2sensor=lidar2sensor.tolist())))
        return sweeps

    def _instances(self, sample: dict, lidar2global: np.ndarray) -> List[dict]:
        records = [self.database.get('sample_annotation', token) for token in sample['anns']]
        if not records:
            return []
        global2lidar = _inverse(lidar2global)
        centres = np.array([record['translation'] for record in records])                # (M, 3)
        centres = centres @ global2lidar[:3, :3].T + global2lidar[:3, 3]
        sizes = np.array([record['size'] for record in records])[:, [1, 0, 2]]           # (M, 3)
        turns = global2lidar[:3, :3] @ _rotations([record['rotation'] for record in records])
        yaws = np.arctan2(turns[:, 1, 0], turns[:, 0, 0])                                # (M,)
        boxes = np.column_stack([centres, sizes, yaws])                                  # (M, 7)
        velocities = np.array([self.database.box_velocity(token) for token in sample['anns']])
        velocities[:, 2] = 0
        velocities = (velocities @ global2lidar[:3, :3].T)[:, :2]                        # (M, 2)
        return [_instance(*row) for row in zip(records, boxes.tolist(), velocities.tolist(),
                                               strict=True)]

    def _sensor2ego(self, record: dict) -> np.ndarray:
        return _rigid(self.database.get('calibrated_sensor', record['calibrated_sensor_token']))

    def _ego2global(self, record: dict) -> np.ndarray:
        return _rigid(self.database.get('ego_pose', record['ego_pose_token']))


def _instance(record: dict, box: List[float], velocity: List[float]) -> dict:
    name = category_to_detection_name(record['category_name'])
    label = -1 if name is None else INFO_CLASSES.index(name)
    return dict(bbox_label=label, bbox_label_3d=label, bbox_3d=box, velocity=velocity,
                bbox_3d_isvalid=record['num_lidar_pts'] + record['num_radar_pts'] > 0,
                num_lidar_pts=record['num_lidar_pts'], num_radar_pts=record['num_radar_pts'])


def _rotations(quaternions: Sequence[Sequence[float]]) -> np.ndarray:
    """(M, 4) quaternions w, x, y, z of any length to (M, 3, 3)."""
    return Rotation.from_quat(np.asarray(quaternions)[:, [1, 2, 3, 0]]).as_matrix()


def _rigid(record: dict) -> np.ndarray:
    """The (4, 4) of a record with `translation` and `rotation`."""
    matrix = np.eye(4)
    matrix[:3, :3] = _rotations([record['rotation']])[0]
    matrix[:3, 3] = record['translation']
    return matrix


def _inverse(rigid: np.ndarray) -> np.ndarray:
    inverse = np.eye(4)
    inverse[:3, :3] = rigid[:3, :3].T
    inverse[:3, 3] = -rigid[:3, :3].T @ rigid[:3, 3]
    return inverse
