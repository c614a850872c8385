"""The thirteen tables of nuScenes v1.0 from recorded scenes.

Units and frames are nuScenes': metres, microseconds, quaternions (w, x, y, z), box sizes (width,
length, height), boxes in the global frame. Shapes: F key frames, A agents.
"""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from bevfusion_enhanced.synthetic import rig
from bevfusion_enhanced.synthetic.agents import CATEGORIES, Agent
from bevfusion_enhanced.synthetic.map_export import SEMANTIC_PRIOR_NAMES
from bevfusion_enhanced.synthetic.plan import KEYFRAME_INTERVAL_US, ScenePlan
from bevfusion_enhanced.synthetic.recorder import Observation, Shot, seconds, shots
from bevfusion_enhanced.synthetic.traffic import Traffic

VERSION = 'v1.0-mini'
ANNOTATION_RANGE = 70.0
"""Metres from the ego within which an object is annotated, as far as the LiDAR meets it at all."""

ATTRIBUTES = ('vehicle.moving', 'vehicle.stopped', 'vehicle.parked', 'cycle.with_rider',
              'cycle.without_rider', 'pedestrian.sitting_lying_down', 'pedestrian.standing',
              'pedestrian.moving')
_VISIBILITY = ((1, 'v0-40', 0.0), (2, 'v40-60', 0.4), (3, 'v60-80', 0.6), (4, 'v80-100', 0.8))

Tables = Dict[str, List[dict]]


@dataclass(frozen=True)
class RecordedScene:
    """A scene whose sensor files are written, with what each of its F key frames saw."""
    plan: ScenePlan
    traffic: Traffic
    observations: Tuple[Observation, ...]


def write_tables(*, root: Path, scenes: Sequence[RecordedScene], seed: int, sweeps: int,
                 image_scale: float) -> None:
    """Write the tables of a dataset to `root`/v1.0-mini.

    Args:
        root: Folder of the dataset.
        scenes: All of its scenes.
        seed: Goes into every token: datasets of different seeds share none.
        sweeps: LiDAR sweeps before each key frame but a scene's first.
        image_scale: Size of the images relative to nuScenes'.
    """
    tables = _vocabulary_tables()
    for scene in scenes:
        for name, records in _SceneTables(scene, seed=seed, sweeps=sweeps,
                                          image_scale=image_scale).build().items():
            tables[name].extend(records)
    tables['map'] = [
        {'token': _token('map', location), 'category': 'semantic_prior',
         'filename': f'maps/{filename}',
         'log_tokens': [log['token'] for log in tables['log'] if log['location'] == location]}
        for location, filename in SEMANTIC_PRIOR_NAMES.items()]
    folder = root / VERSION
    folder.mkdir()
    for name, records in tables.items():
        text = ',\n'.join(json.dumps(record) for record in records)
        (folder / f'{name}.json').write_text(f'[\n{text}\n]\n')


def _vocabulary_tables() -> Tables:
    """The tables that are the same in every dataset, and empty ones for the others."""
    tables: Tables = {name: [] for name in (
        'log', 'scene', 'sample', 'sample_data', 'ego_pose', 'calibrated_sensor', 'instance',
        'sample_annotation', 'map')}
    tables['category'] = [{'token': _token('category', name), 'name': name,
                           'description': f'Simulated {name}.'} for name in CATEGORIES]
    tables['attribute'] = [{'token': _token('attribute', name), 'name': name,
                            'description': name.replace('.', ' is ').replace('_', ' ') + '.'}
                           for name in ATTRIBUTES]
    tables['visibility'] = [{'token': str(token), 'level': level,
                             'description': f'{level[1:]} % of the object is visible.'}
                            for token, level, _ in _VISIBILITY]
    tables['sensor'] = [{'token': _token('sensor', sensor.name), 'channel': sensor.name,
                         'modality': sensor.modality} for sensor in rig.nominal()]
    return tables


class _SceneTables:
    """Builds the records of one scene."""

    def __init__(self, scene: RecordedScene, *, seed: int, sweeps: int, image_scale: float) -> None:
        self._plan, self._traffic = scene.plan, scene.traffic
        self._observations = scene.observations
        self._sensors = {sensor.name: sensor for sensor in rig.scaled(image_scale)}
        self._sweeps = sweeps
        self._key = f'{seed}/{scene.plan.name}'
        self._samples = [self._token('sample', k) for k in range(len(scene.observations))]
        self._times = [self._plan.start_us + k * KEYFRAME_INTERVAL_US
                       for k in range(len(scene.observations))]

    def build(self) -> Tables:
        """Records by table."""
        tables: Tables = {'log': [self._log()], 'sample': self._sample_records(),
                          'calibrated_sensor': self._calibrations()}
        tables['sample_data'], tables['ego_pose'] = self._sensor_records()
        tables['instance'], tables['sample_annotation'] = self._object_records()
        tables['scene'] = [self._scene(len(tables['instance']))]
        return tables

    def _log(self) -> dict:
        return {'token': self._token('log'), 'logfile': self._plan.logfile, 'vehicle': 'sim',
                'date_captured': self._plan.log_date[:10], 'location': self._plan.location}

    def _scene(self, num_instances: int) -> dict:
        times = 'Night' if self._plan.is_night else 'Day'
        return {'token': self._token('scene'), 'log_token': self._token('log'),
                'nbr_samples': len(self._samples), 'first_sample_token': self._samples[0],
                'last_sample_token': self._samples[-1], 'name': self._plan.name,
                'description': f'{times}, simulated, {num_instances} objects, works, parked cars'}

    def _sample_records(self) -> List[dict]:
        records = [{'token': token, 'timestamp': time, 'scene_token': self._token('scene')}
                   for token, time in zip(self._samples, self._times, strict=True)]
        return _chained(records)

    def _calibrations(self) -> List[dict]:
        return [{'token': self._token('calibrated_sensor', sensor.name),
                 'sensor_token': _token('sensor', sensor.name),
                 'translation': sensor.translation.tolist(), 'rotation': sensor.rotation.tolist(),
                 'camera_intrinsic': [] if sensor.intrinsic is None else sensor.intrinsic.tolist()}
                for sensor in self._sensors.values()]

    def _sensor_records(self) -> Tuple[List[dict], List[dict]]:
        """sample_data, chained within each channel, and an ego_pose of the same token for each."""
        channels: Dict[str, List[dict]] = {name: [] for name in self._sensors}
        for keyframe, sample in enumerate(self._samples):
            for shot in shots(self._plan, keyframe=keyframe, sweeps=self._sweeps):
                channels[shot.channel].append(self._sample_data(shot, sample))
        data = [record for records in channels.values() for record in _chained(records)]
        return data, [self._ego_pose(record) for record in data]

    def _sample_data(self, shot: Shot, sample: str) -> dict:
        sensor, filename = self._sensors[shot.channel], shot.filename(self._plan)
        token = self._token('sample_data', shot.channel, shot.timestamp_us)
        return {'token': token, 'sample_token': sample, 'ego_pose_token': token,
                'calibrated_sensor_token': self._token('calibrated_sensor', shot.channel),
                'timestamp': shot.timestamp_us,
                'fileformat': 'pcd' if sensor.modality == 'lidar' else 'jpg',
                'is_key_frame': shot.is_key, 'height': sensor.height, 'width': sensor.width,
                'filename': filename}

    def _ego_pose(self, data: dict) -> dict:
        pose = self._traffic.ego2global(seconds(self._plan, data['timestamp']))
        yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
        return {'token': data['ego_pose_token'], 'timestamp': data['timestamp'],
                'rotation': _quaternion(yaw), 'translation': pose[:3, 3].tolist()}

    def _object_records(self) -> Tuple[List[dict], List[dict]]:
        """instance and sample_annotation; a track has no gaps."""
        frames = np.arange(len(self._samples))
        boxes = np.stack([self._traffic.agent_boxes(seconds(self._plan, time))
                          for time in self._times])
        annotated = self._annotated(boxes)
        levels = self._visibility_tokens()
        instances, annotations = [], []
        for index, agent in enumerate(self._traffic.agents):
            seen = frames[annotated[:, index]]
            if not len(seen):
                continue
            speeds = _tracked_speeds(boxes[seen, index, :2], seen)
            token = self._token('instance', index)
            track = _chained([
                self._annotation(token, agent, frame, boxes[frame, index], speed,
                                 levels[frame][index],
                                 int(self._observations[frame].num_points[index]))
                for frame, speed in zip(seen, speeds, strict=True)])
            instances.append({'token': token, 'category_token': _token('category', agent.category),
                              'nbr_annotations': len(track),
                              'first_annotation_token': track[0]['token'],
                              'last_annotation_token': track[-1]['token']})
            annotations.extend(track)
        return instances, annotations

    def _annotation(self, instance: str, agent: Agent, frame: int, box: np.ndarray, speed: float,
                    visibility: str, num_points: int) -> dict:
        attribute = agent.attribute(speed)
        length, width, height = agent.size
        return {'token': self._token('sample_annotation', instance, frame),
                'sample_token': self._samples[frame], 'instance_token': instance,
                'visibility_token': visibility,
                'attribute_tokens': [_token('attribute', attribute)] if attribute else [],
                'translation': box[:3].tolist(), 'size': [width, length, height],
                'rotation': _quaternion(float(box[6])), 'num_lidar_pts': num_points,
                'num_radar_pts': 0}

    def _annotated(self, boxes: np.ndarray) -> np.ndarray:
        """(F, A) whether an agent is annotated, from boxes (F, A, 7).

        From the first to the last key frame in which it is in range and the LiDAR meets it; where
        that is a single one, also the next (or the previous), so that every track has a velocity.
        """
        ego = np.stack([self._traffic.ego2global(seconds(self._plan, time))[:2, 3]
                        for time in self._times])
        near = np.hypot(*np.moveaxis(boxes[..., :2] - ego[:, None], -1, 0)) < ANNOTATION_RANGE
        met = near & (np.stack([o.num_points for o in self._observations]) > 0)
        so_far = np.maximum.accumulate(met)
        still = np.maximum.accumulate(met[::-1])[::-1]
        inside = so_far & still
        lonely = inside.sum(0) == 1
        after = np.concatenate([np.zeros_like(met[:1]), inside[:-1]])
        after[-2:-1] |= inside[-1:]
        return inside | (lonely & after)

    def _visibility_tokens(self) -> List[List[str]]:
        """By key frame and agent: which share of its pixels the images show."""
        bounds = [bound for _, _, bound in _VISIBILITY][1:]
        return [[str(1 + level) for level in
                 np.searchsorted(bounds, o.visible / np.maximum(o.covered, 1), side='right')]
                for o in self._observations]

    def _token(self, *parts: object) -> str:
        return _token(self._key, *parts)


def _tracked_speeds(positions: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(n,) speeds in m/s as the devkit takes them: over both neighbours where there are two."""
    if len(frames) < 2:
        return np.zeros(len(frames))
    before = np.maximum(np.arange(len(frames)) - 1, 0)
    after = np.minimum(np.arange(len(frames)) + 1, len(frames) - 1)
    elapsed = (frames[after] - frames[before]) * KEYFRAME_INTERVAL_US * 1e-6
    return np.hypot(*(positions[after] - positions[before]).T) / elapsed


def _chained(records: List[dict]) -> List[dict]:
    """The records with `prev` and `next` tokens, '' at the ends."""
    tokens = [''] + [record['token'] for record in records] + ['']
    return [{**record, 'prev': before, 'next': after}
            for record, before, after in zip(records, tokens, tokens[2:], strict=False)]


def _quaternion(yaw: float) -> List[float]:
    """(w, x, y, z) of a turn around the vertical axis."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def _token(*parts: object) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    return hashlib.md5('/'.join(map(str, parts)).encode()).hexdigest()
