"""By which rules a result was made: saved with it, and compared before two results are.

A protocol is plain data that JSON holds. Two results compare where all of it agrees.
"""
import hashlib
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

PROTOCOL_VERSION = 1


def map_protocol(*, classes: Sequence[str], thresholds: Sequence[float],
                 rings: Sequence[Sequence[float]], grid: Mapping[str, Any],
                 tokens: Iterable[str], version: Optional[str],
                 split: Optional[str]) -> Dict[str, Any]:
    """The rules of a map result.

    Args:
        classes: Map classes in the order of the channels.
        thresholds: Of the probability.
        rings: Of distance, metres.
        grid: `xbound`, `ybound` and `raster` of the truth, where known.
        tokens: Of the samples.
        version: Of the dataset.
        split: Name of the info file.
    """
    return _plain(dict(
        protocol=PROTOCOL_VERSION, task='map', classes=classes, thresholds=thresholds,
        rings=rings, xbound=grid.get('xbound'), ybound=grid.get('ybound'),
        raster=grid.get('raster'), version=version, split=split, **_samples(tokens)))


def detection_protocol(*, classes: Sequence[str], eval_version: str,
                       class_range: Mapping[str, float], rings: Sequence[Sequence[float]],
                       tokens: Iterable[str], version: Optional[str],
                       split: Optional[str]) -> Dict[str, Any]:
    """The rules of a detection result.

    Args:
        classes: Detection classes.
        eval_version: Name of nuScenes' protocol.
        class_range: Metres from the ego within which a class is evaluated.
        rings: Of distance, metres.
        tokens: Of the samples.
        version: Of the dataset.
        split: Name of the info file.
    """
    return _plain(dict(
        protocol=PROTOCOL_VERSION, task='object', classes=sorted(classes),
        eval_version=eval_version, class_range=dict(class_range), rings=rings, version=version,
        split=split, **_samples(tokens)))


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> List[str]:
    """Where two protocols disagree, a line each; what one of them does not know is passed over.

    The number of samples, and the name of their file, are of no account where their digests say
    whether they are the same.
    """
    keys = [key for key in saved if saved[key] is not None and asked.get(key) is not None]
    if 'samples_sha256' in keys:
        keys = [key for key in keys if key not in ('samples', 'split')]
    lines = []
    for key in keys:
        if _plain(saved[key]) == _plain(asked[key]):
            continue
        if key == 'samples_sha256':
            lines.append(f'samples: saved {saved.get("samples")} of {saved.get("split")}, asked '
                         f'{asked.get("samples")} of {asked.get("split")}, not the same ones')
        else:
            lines.append(f'{key}: saved {saved[key]}, asked {asked[key]}')
    return lines


def _samples(tokens: Iterable[str]) -> Dict[str, Any]:
    ordered = sorted(str(token) for token in tokens)
    digest = hashlib.sha256('\n'.join(ordered).encode()).hexdigest()
    return dict(samples=len(ordered), samples_sha256=digest)


def _plain(value: Any) -> Any:
    """Lists for tuples, floats for numbers other than bool and int: what JSON gives back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
