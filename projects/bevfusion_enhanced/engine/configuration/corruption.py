"""`--corrupt NAME[=LEVEL]`: what goes wrong in a test, put into its pipeline.

| name | level | what |
| --- | --- | --- |
| cameras | a number, or names joined by +; `:removed` | lost: black, or not there at all (1) |
| beams | 16, 8, 4, 2 or 1 | the LiDAR has so many beams left (16) |
| delay_points | | the LiDAR is one sweep late |
| delay_images | | the cameras are one image late |
| calibration | DEGREES or DEGREES:CM | cameras out of true, standard deviations (1:5) |
"""
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from mmengine.config import Config, ConfigDict

from ...errors import ConfigError

_IMAGES, _POINTS = 'LoadMultiViewImages', 'LoadPointsWithSweeps'


class Corruption(NamedTuple):
    """Where a corruption goes.

    Attributes:
        loader: The step that it is placed at.
        after: Behind that step; else in front of it.
        step: The step to insert; None where the loader itself is changed.
        change: Settings of the loader to change.
    """

    loader: str
    after: bool
    step: Optional[Dict[str, Any]]
    change: Dict[str, Any]


def parse_corruption(text: str) -> Corruption:
    """Read 'NAME' or 'NAME=LEVEL'.

    Raises:
        ConfigError: There is no such corruption, or not at such a level.
    """
    name, _, level = text.partition('=')
    if name not in CORRUPTIONS:
        raise ConfigError(f'--corrupt {text}: unknown; known are {", ".join(CORRUPTIONS)}')
    try:
        return CORRUPTIONS[name](level)
    except ValueError as error:
        raise ConfigError(f'--corrupt {text}: {error}') from None


def use_corruptions(config: Config, corruptions: Sequence[str]) -> None:
    """Put corruptions into the pipeline that a config is tested by, in place.

    Raises:
        ConfigError: See `parse_corruption`; or the pipeline does not have the step that it needs.
    """
    from .preflight import leaf_datasets
    parsed = [(text, parse_corruption(text)) for text in corruptions]
    for where, dataset in leaf_datasets(config.test_dataloader['dataset'],
                                        'test_dataloader.dataset'):
        for text, corruption in parsed:
            dataset['pipeline'] = corrupted(dataset['pipeline'], corruption, text=text,
                                            where=f'{where}.pipeline')


def corrupted(pipeline: Sequence[Mapping[str, Any]], corruption: Corruption, *, text: str,
              where: str) -> List[Mapping[str, Any]]:
    """A pipeline with a corruption in it.

    Args:
        pipeline: Steps.
        corruption: What to put in.
        text: What it is called, for messages.
        where: What the pipeline is called.
    """
    steps = [ConfigDict(step) for step in pipeline]
    places = [index for index, step in enumerate(steps) if step['type'] == corruption.loader]
    if not places:
        raise ConfigError(f'--corrupt {text}: {where} has no {corruption.loader}, so there is '
                          'nothing to corrupt')
    place = places[0]
    steps[place].update(corruption.change)
    if corruption.step is not None:
        steps.insert(place + corruption.after, ConfigDict(corruption.step))
    return steps


def _cameras(level: str) -> Corruption:
    which, _, how = (level or '1').partition(':')
    if how not in ('', 'removed', 'black'):
        raise ValueError(f'{how!r} is unknown; a lost camera is black (the default) or removed')
    lost = dict(count=int(which)) if which.isdigit() else dict(cameras=which.split('+'))
    return Corruption(_IMAGES, True, dict(type='DropCameras', remove=how == 'removed', **lost), {})


def _beams(level: str) -> Corruption:
    from ...datasets.lidar_beams import check_beams
    return Corruption(_POINTS, False, None, dict(beams=check_beams(int(level or 16))))


def _delay(loader: str, step: str) -> Callable[[str], Corruption]:
    def parse(level: str) -> Corruption:
        if level not in ('', '1'):
            raise ValueError(f'level {level} is unknown; a delay is of one sweep')
        return Corruption(loader, False, dict(type=step), {})
    return parse


def _calibration(level: str) -> Corruption:
    degrees, _, centimetres = (level or '1:5').partition(':')
    return Corruption(_IMAGES, True, dict(
        type='CalibrationNoise', rotation_deg=float(degrees),
        translation_cm=float(centimetres or 0)), {})


CORRUPTIONS: Dict[str, Callable[[str], Corruption]] = dict(
    cameras=_cameras, beams=_beams, delay_points=_delay(_POINTS, 'DelayPoints'),
    delay_images=_delay(_IMAGES, 'DelayImages'), calibration=_calibration)
