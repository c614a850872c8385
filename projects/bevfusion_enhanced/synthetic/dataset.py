"""Generates a whole dataset in nuScenes v1.0-mini format.

The same settings give the same bytes, with any number of workers: every random choice has its own
seed, made of the dataset's seed and of what is drawn.
"""
import json
import multiprocessing
import os
import shutil
import sys
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Sequence, Tuple

import cv2
from threadpoolctl import threadpool_limits

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.progress import progress_bar, track
from bevfusion_enhanced.synthetic.map_export import write_map_files
from bevfusion_enhanced.synthetic.nuscenes_writer import RecordedScene, write_tables
from bevfusion_enhanced.synthetic.plan import (
    KEYFRAME_INTERVAL_US,
    MAX_SWEEPS,
    ScenePlan,
    plan_scenes,
)
from bevfusion_enhanced.synthetic.recorder import Observation, Recorder, channel_folders
from bevfusion_enhanced.synthetic.scene import Town
from bevfusion_enhanced.synthetic.town import LOCATIONS, build_town
from bevfusion_enhanced.synthetic.traffic import Traffic, simulate

MANIFEST = 'synthetic.json'
REVISION = 1
"""Raised whenever the simulator writes other bytes than before for the same settings."""

Mapper = Callable[[Callable, Sequence], Iterable]


@dataclass(frozen=True)
class Settings:
    """What a dataset's bytes depend on.

    Attributes:
        scenes: Number of scenes; a fifth, at least one, is held out.
        keyframes: Key frames of a scene, two a second.
        sweeps: LiDAR sweeps, twenty a second, before each key frame but a scene's first.
        image_scale: Size of the images relative to 1600 x 900.
        seed: Of everything.
        lidar_columns: Azimuth steps of a LiDAR turn; nuScenes' has 1084.
    """
    scenes: int
    keyframes: int
    sweeps: int
    image_scale: float
    seed: int
    lidar_columns: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        plan_scenes(self.scenes)
        for name, low, high in (('keyframes', 2, 60), ('sweeps', 0, MAX_SWEEPS),
                                ('image_scale', 0.05, 1.0), ('seed', 0, 2 ** 32 - 1),
                                ('lidar_columns', 64, 2168)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f'{name}: must be from {low} to {high}, got {value}')

    def manifest(self) -> dict:
        """What is written beside the dataset to recognise it."""
        return {'generator': 'bevfusion_enhanced.synthetic', 'revision': REVISION, **asdict(self)}


def create_dataset(*, out: Path, scenes: int = 10, keyframes: int = 20, sweeps: int = 2,
                   image_scale: float = 0.25, seed: int = 0, lidar_columns: int = 542,
                   workers: int = 2) -> bool:
    """Generate a dataset, unless the very same one is already there.

    The dataset is written beside `out` and takes its name when complete.

    Args:
        out: Root folder of the dataset; must be new, empty, or hold this dataset.
        scenes, keyframes, sweeps, image_scale, seed, lidar_columns: See `Settings`.
        workers: Number of processes; of no influence on the bytes.

    Returns:
        Whether it was generated now; False where it was already there.

    Raises:
        ConfigError: For settings outside their ranges.
        DataError: If `out` holds something else.
    """
    if workers < 1:
        raise ConfigError(f'workers: must be at least 1, got {workers}')
    settings = Settings(scenes=scenes, keyframes=keyframes, sweeps=sweeps, seed=seed,
                        image_scale=image_scale, lidar_columns=lidar_columns)
    out = Path(out)
    if _is_complete(out, settings):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f'.{out.name}.partial-{os.getpid()}'
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _generate(partial, settings, workers)
        (partial / MANIFEST).write_text(json.dumps(settings.manifest(), indent=1) + '\n')
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_complete(out: Path, settings: Settings) -> bool:
    """Whether `out` holds this dataset already; False where nothing is there.

    Raises:
        DataError: If something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    advice = 'choose another folder or remove it'
    try:
        found = json.loads((out / MANIFEST).read_text())
    except (OSError, ValueError):
        raise DataError(f'{out} exists and is no synthetic dataset; {advice}') from None
    wanted = settings.manifest()
    other = [f'{name} {found.get(name)} instead of {value}' for name, value in wanted.items()
             if found.get(name) != value]
    if other:
        raise DataError(f'{out} holds a dataset with other settings ({", ".join(other)}); {advice}')
    return True


def _generate(root: Path, settings: Settings, workers: int) -> None:
    plans = plan_scenes(settings.scenes)
    for folder in channel_folders():
        (root / folder).mkdir(parents=True)
    with threadpool_limits(1):
        for location in track(LOCATIONS, description='Towns'):
            write_map_files(_town(location, settings.seed), root)
        with _mapper(workers) as in_parallel:
            jobs = [(plan, settings) for plan in plans]
            traffics = list(track(in_parallel(_simulate, jobs), description='Traffic',
                                  total=len(jobs)))
            observations = _record(root, settings, plans, traffics, in_parallel)
        scenes = [RecordedScene(plan, traffic, seen)
                  for plan, traffic, seen in zip(plans, traffics, observations, strict=True)]
        write_tables(root=root, scenes=scenes, seed=settings.seed, sweeps=settings.sweeps,
                     image_scale=settings.image_scale)


def _record(root: Path, settings: Settings, plans: Sequence[ScenePlan],
            traffics: Sequence[Traffic], in_parallel: Mapper) -> List[Tuple[Observation, ...]]:
    """Write all sensor files; what was seen, by scene and key frame."""
    recorder = Recorder(root=root, seed=settings.seed, image_scale=settings.image_scale,
                        sweeps=settings.sweeps, lidar_columns=settings.lidar_columns)
    jobs = [(recorder, plan, traffic, keyframe)
            for plan, traffic in zip(plans, traffics, strict=True)
            for keyframe in range(settings.keyframes)]
    seen: List[Observation] = []
    with progress_bar() as bar:
        task = bar.add_task('Key frames', total=len(jobs), note='')
        for observation, job in zip(in_parallel(_record_keyframe, jobs), jobs, strict=True):
            seen.append(observation)
            bar.update(task, advance=1, note=job[1].name)
    count = settings.keyframes
    return [tuple(seen[first:first + count]) for first in range(0, len(seen), count)]


def simulate_scene(*, plan: ScenePlan, settings: Settings) -> Traffic:
    """The traffic of one scene of the dataset with these settings."""
    duration = (settings.keyframes - 1) * KEYFRAME_INTERVAL_US * 1e-6
    return simulate(town=_town(plan.location, settings.seed), duration=duration,
                    bearing=plan.bearing,
                    seed=zlib.crc32(f'{settings.seed}/{plan.name}'.encode()))


def _simulate(job: Tuple[ScenePlan, Settings]) -> Traffic:
    return simulate_scene(plan=job[0], settings=job[1])


def _record_keyframe(job: Tuple[Recorder, ScenePlan, Traffic, int]) -> Observation:
    recorder, plan, traffic, keyframe = job
    return recorder.record(plan=plan, traffic=traffic, keyframe=keyframe,
                           ground=_town(plan.location, recorder.seed).ground)


@lru_cache(maxsize=len(LOCATIONS))
def _town(location: str, seed: int) -> Town:
    """The town of a location, built once in a process and inherited by the processes it forks."""
    return build_town(location=location, seed=seed)


@contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """A `map` that keeps the order and runs in `workers` processes."""
    if workers == 1:
        yield map
        return
    # A forked process has the towns and the imported libraries at once; elsewhere it starts afresh.
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
    with context.Pool(workers, initializer=_start_worker) as pool:
        yield pool.imap


def _start_worker() -> None:
    """One thread a process: the processes share the cores already."""
    threadpool_limits(1)
    cv2.setNumThreads(0)
