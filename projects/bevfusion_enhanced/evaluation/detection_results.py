"""The detection task's result: the official submission, how it is kept, and its scores.

`results_nusc.json` is nuScenes' submission form and nothing else: `{'meta': ..., 'results': {sample
token: [record]}}`. What it does not say lies beside it, in `results_nusc.about.json`: the protocol,
the conditions, and where the data was.
"""
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from bevfusion_enhanced.errors import DataError
from bevfusion_enhanced.evaluation.protocol import detection_protocol
from bevfusion_enhanced.evaluation.rings import Ring

if TYPE_CHECKING:
    from bevfusion_enhanced.evaluation.official_detection import SampleDetectionEval

SUBMISSION_FILE = 'results_nusc.json'
SUMMARY_FILE = 'metrics_summary.json'
ERROR_NAMES = {'trans_err': 'ATE', 'scale_err': 'ASE', 'orient_err': 'AOE', 'vel_err': 'AVE',
               'attr_err': 'AAE'}

Submission = Dict[str, List[dict]]


@dataclass(frozen=True)
class DetectionResults:
    """A submission and what is known of it.

    Attributes:
        boxes: Sample token -> records in submission form.
        meta: The submission's own: which sensors were used.
        protocol: See `detection_protocol`; None for a submission of somewhere else.
        conditions: How the predictions came about, for people.
        data_root: Root of the dataset; None where unknown.
    """

    boxes: Submission
    meta: Mapping[str, bool]
    protocol: Optional[Mapping[str, Any]] = None
    conditions: Optional[Mapping[str, Any]] = None
    data_root: Optional[str] = None


class DetectionScores(NamedTuple):
    """What a submission scores.

    Attributes:
        summary: The devkit's, and the scores of parts of the set.
        metrics: `mAP`, `NDS`, `<class>/AP`, ... and of parts, which are rings and kinds of scenes,
            `<part>/<class>/AP` and `<part>/mean/AP`; of kinds of scenes also `<kind>/mean/NDS` and
            the mean errors, `<kind>/mean/ATE`, ...
    """

    summary: dict
    metrics: Dict[str, float]


def protocol_of(boxes: Submission, *, eval_version: str, rings: Sequence[Ring],
                version: Optional[str], split: Optional[str]) -> Dict[str, Any]:
    """The protocol of a submission that is scored so."""
    class_range = class_ranges(eval_version)
    return detection_protocol(classes=list(class_range), eval_version=eval_version,
                              class_range=class_range, rings=rings, tokens=boxes, version=version,
                              split=split)


def class_ranges(eval_version: str) -> Dict[str, float]:
    """Metres from the ego within which nuScenes' protocol evaluates a class."""
    from nuscenes.eval.detection.config import config_factory  # loads plotting: keep it out of
    return dict(config_factory(eval_version).class_range)      # the import of this package


def score_submission(boxes: Submission, *, data_root: str, version: str, eval_version: str,
                     rings: Sequence[Ring]) -> DetectionScores:
    """Score a submission by nuScenes' own code, over its own samples and parts of them.

    Raises:
        DataError: The tables cannot be read, or are not of these samples.
    """
    from nuscenes.eval.detection.config import config_factory

    from bevfusion_enhanced.evaluation.official_detection import SampleDetectionEval
    database = open_tables(data_root, version)
    known = {sample['token'] for sample in database.sample}
    foreign = [token for token in boxes if token not in known]
    if foreign:
        raise DataError(f'{len(foreign)} samples of the submission, such as {foreign[0]}, are not '
                        f'in the tables of {version} under {data_root}; name the dataset that was '
                        'predicted')
    evaluation = SampleDetectionEval(nusc=database, config=config_factory(eval_version),
                                     results=boxes)
    summary = evaluation.evaluate()[0].serialize()
    by_ring = evaluation.precision_by_ring(rings)
    by_kind = scores_by_kind(evaluation)
    metrics = flatten(summary)
    metrics.update({f'{ring}/{name}/AP': value for ring, values in by_ring.items()
                    for name, value in values.items()})
    metrics.update({f'{kind}/{name}': value for kind, values in by_kind.items()
                    for name, value in values.items()})
    return DetectionScores(summary={**summary, 'ring_aps': by_ring, 'scene_scores': by_kind},
                           metrics=metrics)


def scores_by_kind(evaluation: 'SampleDetectionEval') -> Dict[str, Dict[str, float]]:
    """Official scores of the samples of day, night and rain.

    As in the parts of a map result, a class without a true box in a part is left out of it, of its
    means and NDS too. Where no class of a part has one of the errors, it has no NDS.

    Returns:
        {kind: {'<class>/AP', 'mean/AP', 'mean/ATE', ..., 'mean/NDS'}}; no entry for a kind of scene
        that does not occur or is without any true box.
    """
    found = {}
    for kind, tokens in evaluation.samples_by_kind().items():
        part = evaluation.of_samples(tokens)
        if part is None:
            continue
        with warnings.catch_warnings():  # of a mean of nothing, where no class has an error
            warnings.simplefilter('ignore', RuntimeWarning)
            summary = part.evaluate()[0].serialize()
        scores = flatten(summary)
        errors = {name: scores[f'm{name}'] for name in ERROR_NAMES.values() if f'm{name}' in scores}
        found[kind] = {
            **{f'{name}/AP': scores[f'{name}/AP'] for name in summary['mean_dist_aps']},
            'mean/AP': scores['mAP'], **{f'mean/{name}': value for name, value in errors.items()}}
        if len(errors) == len(ERROR_NAMES):
            found[kind]['mean/NDS'] = scores['NDS']
    return found


def flatten(summary: Mapping[str, Any]) -> Dict[str, float]:
    """The devkit's summary under this project's names, without what is undefined."""
    metrics = {'mAP': summary['mean_ap'], 'NDS': summary['nd_score']}
    metrics.update({f'm{name}': summary['tp_errors'][key] for key, name in ERROR_NAMES.items()})
    for class_name, precision in summary['mean_dist_aps'].items():
        metrics[f'{class_name}/AP'] = precision
        errors = summary['label_tp_errors'][class_name]
        metrics.update({f'{class_name}/{name}': errors[key] for key, name in ERROR_NAMES.items()})
    return {key: float(value) for key, value in metrics.items() if not math.isnan(value)}


def open_tables(data_root: str, version: str) -> Any:
    """The devkit's database.

    Raises:
        DataError: The tables are missing or broken.
    """
    from nuscenes import NuScenes
    try:
        return NuScenes(version=version, dataroot=str(data_root), verbose=False)
    except (AssertionError, OSError, ValueError, KeyError) as error:
        raise DataError(f'cannot read the tables of {version} under {data_root}: '
                        f'{type(error).__name__} {error}') from None


def save_submission(results: DetectionResults, folder: Path) -> Path:
    """Write the submission, and beside it what is known of it."""
    path = folder / SUBMISSION_FILE
    dump_json(dict(meta=dict(results.meta), results=results.boxes), path)
    dump_json(dict(protocol=results.protocol, conditions=results.conditions,
                   data_root=results.data_root), about_file(path), indent=2)
    return path


def load_submission(path: Path) -> DetectionResults:
    """Read a submission, of this project or any other.

    Raises:
        DataError: The file is missing or is no submission.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get('results'), dict):
        raise DataError(f'{path} is no nuScenes submission: it has no "results" by sample token')
    about = _read_json(about_file(path)) if about_file(path).is_file() else {}
    return DetectionResults(boxes=content['results'], meta=content.get('meta', {}),
                            protocol=about.get('protocol'), conditions=about.get('conditions'),
                            data_root=about.get('data_root'))


def about_file(submission: Path) -> Path:
    """Where what is known of a submission lies."""
    return submission.with_name(f'{submission.stem}.about.json')


def dump_json(content: Any, path: Path, *, indent: Optional[int] = None) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=indent))
    temporary.replace(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror or error}') from None
    except ValueError as error:
        raise DataError(f'{path} is no JSON: {error}') from None
