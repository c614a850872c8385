"""Which scenes a dataset has: official names, so that the official splits apply, and their places.

nuScenes has one map for a location. In the real mini set Boston Seaport and Singapore Queenstown
hold scenes of both splits; here every held-out scene lies in Queenstown and no training scene does,
so that the streets of mini_val are never seen in training.
"""
import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Tuple

from bevfusion_enhanced.errors import ConfigError

KEYFRAME_INTERVAL_US = 500_000
SWEEP_INTERVAL_US = 50_000
MAX_SWEEPS = 9
"""Between two key frames at 2 Hz, a LiDAR at 20 Hz turns nine times."""
_FIRST_DAY = datetime(2024, 6, 3, tzinfo=timezone(timedelta(hours=8)))


@dataclass(frozen=True)
class ScenePlan:
    """A scene before it is simulated.

    Attributes:
        name: Official nuScenes scene name.
        location: Official location name.
        is_night: Whether it is dark.
        start_us: Time of the first key frame in microseconds.
        bearing: Direction from the middle of the town to where in it the scene takes place, in
            radians counter-clockwise from east; scenes of one town keep apart.
        log_date: Local date and time of the start, as in nuScenes' log files.
    """
    name: str
    location: str
    is_night: bool
    start_us: int
    bearing: float
    log_date: str

    @property
    def logfile(self) -> str:
        """Name of the drive, with which its sensor files begin."""
        return f'sim-{self.log_date}'


_TRAIN = (('scene-0061', 'singapore-onenorth', False),
          ('scene-1094', 'singapore-hollandvillage', True),
          ('scene-0553', 'boston-seaport', False),
          ('scene-1077', 'singapore-hollandvillage', False),
          ('scene-0655', 'boston-seaport', False),
          ('scene-0796', 'singapore-onenorth', False),
          ('scene-1100', 'singapore-hollandvillage', True),
          ('scene-0757', 'boston-seaport', False))
_VAL = (('scene-0103', 'singapore-queenstown', False), ('scene-0916', 'singapore-queenstown', True))
MAX_SCENES = len(_TRAIN) + len(_VAL)


def plan_scenes(count: int) -> Tuple[ScenePlan, ...]:
    """`count` scenes in the order of their names; a fifth of them, and at least one, are held out.

    Raises:
        ConfigError: If `count` leaves a split empty or exceeds the official names.
    """
    if not 2 <= count <= MAX_SCENES:
        raise ConfigError(f'scenes: must be 2 (one of each split) to {MAX_SCENES}, got {count}')
    held_out = max(1, count // 5)
    chosen = sorted(_TRAIN[:count - held_out] + _VAL[:held_out])
    return tuple(_plan(*scene, order=int(scene[0][-4:])) for scene in chosen)


def _plan(name: str, location: str, is_night: bool, *, order: int) -> ScenePlan:
    """The scene of number `order`, which fixes its day and hour."""
    start = _FIRST_DAY + timedelta(days=order % 20, hours=21 if is_night else 10,
                                   minutes=order % 97)
    neighbours = [scene[0] for scene in _TRAIN + _VAL if scene[1] == location]
    return ScenePlan(name=name, location=location, is_night=is_night,
                     bearing=2 * math.pi * neighbours.index(name) / len(neighbours),
                     start_us=int(start.timestamp()) * 1_000_000,
                     log_date=start.strftime('%Y-%m-%d-%H-%M-%S%z'))
