"""What the ego vehicle's sensors write at one key frame, and what they saw of whom.

Global frame, metres, seconds; time 0 is the scene's first key frame. Shapes: A agents, K boxes of a
snapshot (the agents first), P points.
"""
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, NamedTuple, Tuple

import cv2
import numpy as np

from bevfusion_enhanced.synthetic import camera, lidar, light, rig
from bevfusion_enhanced.synthetic.plan import KEYFRAME_INTERVAL_US, SWEEP_INTERVAL_US, ScenePlan
from bevfusion_enhanced.synthetic.scene import Ground
from bevfusion_enhanced.synthetic.traffic import Traffic

JPEG_QUALITY = 90


class Shot(NamedTuple):
    """One file of one sensor: its channel, its time, and whether it belongs to a key frame."""
    channel: str
    timestamp_us: int
    is_key: bool

    def filename(self, plan: ScenePlan) -> str:
        """Path of the file relative to the dataset's root."""
        folder, ending = 'samples' if self.is_key else 'sweeps', 'jpg'
        if self.channel == rig.LIDAR:
            ending = 'pcd.bin'
        return (f'{folder}/{self.channel}/{plan.logfile}__{self.channel}__{self.timestamp_us}'
                f'.{ending}')


@dataclass(frozen=True)
class Observation:
    """What a key frame's sensors saw of the A agents.

    Attributes:
        num_points: (A,) LiDAR points inside the box.
        covered: (A,) pixels that the box would fill in all images if it stood alone.
        visible: (A,) pixels that it does fill.
    """
    num_points: np.ndarray
    covered: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Recorder:
    """The settings that all key frames of a dataset share.

    Attributes:
        root: Folder of the dataset.
        seed: Of the sensors' noise, together with scene, channel and time.
        image_scale: Size of the images relative to nuScenes'.
        sweeps: LiDAR sweeps before each key frame but a scene's first.
        lidar_columns: Azimuth steps of a LiDAR turn.
    """
    root: Path
    seed: int
    image_scale: float
    sweeps: int
    lidar_columns: int

    def record(self, *, plan: ScenePlan, traffic: Traffic, ground: Ground, keyframe: int
               ) -> Observation:
        """Write the files of a key frame and of the sweeps before it."""
        count = len(traffic.agents)
        num_points = np.zeros(count, np.int64)
        covered, visible = np.zeros(count, np.int64), np.zeros(count, np.int64)
        sensors = {sensor.name: sensor for sensor in rig.scaled(self.image_scale)}
        for shot in shots(plan, keyframe=keyframe, sweeps=self.sweeps):
            sensor, t = sensors[shot.channel], seconds(plan, shot.timestamp_us)
            sensor2global = traffic.ego2global(t) @ sensor.sensor2ego
            rng = np.random.default_rng([self.seed, zlib.crc32(plan.name.encode()),
                                         zlib.crc32(shot.channel.encode()), shot.timestamp_us])
            path = self.root / shot.filename(plan)
            if sensor.modality == 'lidar':
                points = lidar.scan(snapshot=traffic.snapshot(t), ground=ground,
                                    lidar2global=sensor2global, rng=rng,
                                    columns=self.lidar_columns).points
                points.astype('<f4').tofile(path)
                if shot.is_key:
                    num_points = count_points(points, sensor2global, traffic.agent_boxes(t))
            else:
                image = camera.render(snapshot=traffic.snapshot(t), ground=ground,
                                      cam2global=sensor2global, intrinsic=sensor.intrinsic,
                                      width=sensor.width, height=sensor.height,
                                      light=scene_light(plan, self.seed), rng=rng)
                _write_jpeg(path, image.rgb)
                covered += image.covered[:count]
                visible += image.visible[:count]
        return Observation(num_points=num_points, covered=covered, visible=visible)


def shots(plan: ScenePlan, *, keyframe: int, sweeps: int) -> Iterator[Shot]:
    """The files of a key frame: LiDAR sweeps in order of time, the LiDAR key frame, the cameras."""
    time = plan.start_us + keyframe * KEYFRAME_INTERVAL_US
    for back in range(sweeps if keyframe else 0, 0, -1):
        yield Shot(rig.LIDAR, time - back * SWEEP_INTERVAL_US, False)
    for sensor in rig.nominal()[::-1]:
        yield Shot(sensor.name, time + round(sensor.time_offset * 1e6), True)


def seconds(plan: ScenePlan, timestamp_us: int) -> float:
    """Time since the scene's first key frame."""
    return (timestamp_us - plan.start_us) * 1e-6


def scene_light(plan: ScenePlan, seed: int) -> light.Light:
    """The light of a scene, which stays the same through it."""
    rng = np.random.default_rng([seed, zlib.crc32(plan.name.encode())])
    azimuth = rng.uniform(-np.pi, np.pi)
    if plan.is_night:
        return light.night(azimuth=azimuth)
    return light.daylight(azimuth=azimuth, elevation=rng.uniform(0.5, 1.2),
                          cloud=rng.uniform(0.0, 0.7))


def count_points(points: np.ndarray, lidar2global: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How many points lie inside each box, faces included.

    Args:
        points: (P, >= 3) in the LiDAR frame.
        lidar2global: (4, 4).
        boxes: (A, 7) global x, y, z of the centre, length, width, height, yaw.

    Returns:
        (A,) int64.
    """
    located = points[:, :3].astype(np.float64) @ lidar2global[:3, :3].T + lidar2global[:3, 3]
    order = np.argsort(located[:, 0], kind='stable')
    located = located[order]
    radius = np.hypot(boxes[:, 3], boxes[:, 4]) / 2
    first, last = (np.searchsorted(located[:, 0], boxes[:, 0] + side * radius) for side in (-1, 1))
    size = last - first
    box = np.repeat(np.arange(len(boxes)), size)
    point = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + first[box]
    near = np.abs(located[point, 1] - boxes[box, 1]) <= radius[box]
    box, point = box[near], point[near]
    offset = located[point] - boxes[box, :3]
    cos, sin = np.cos(boxes[box, 6]), np.sin(boxes[box, 6])
    local = np.stack([offset[:, 0] * cos + offset[:, 1] * sin,
                      offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2]], axis=-1)
    inside = (np.abs(local) <= boxes[box, 3:6] / 2).all(-1)
    return np.bincount(box[inside], minlength=len(boxes))


def channel_folders() -> Tuple[str, ...]:
    """The folders that a dataset's sensor files lie in, relative to its root."""
    return tuple(f'samples/{sensor.name}' for sensor in rig.nominal()) + (f'sweeps/{rig.LIDAR}',)


def _write_jpeg(path: Path, rgb: np.ndarray) -> None:
    done, data = cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise OSError(f'cannot encode {path}')
    path.write_bytes(data.tobytes())
