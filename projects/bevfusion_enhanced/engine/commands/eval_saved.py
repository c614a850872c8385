"""`tools/eval_saved.py` as a function: metrics of results that were kept, without the model.

Boxes are scored anew from the submission; maps from their counts, or, for other rings, from their
masks. The rules are those that were saved with the result; a config, where one is given, has to
agree with them.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from mmengine.config import Config

from ...errors import ConfigError, DataError
from ..configuration.config import load_config
from .evaluate import write_metrics

NO_CONFIG = 'none'
Scorer = Callable[[], Dict[str, float]]


@dataclass(frozen=True)
class EvalSavedOptions:
    """What the command line asks for.

    Attributes:
        config: Path of the config file to compare with, or 'none'.
        result: `results_nusc.json`, `map_results.npz`, or a folder with one or both of them.
        data_root: Root of the dataset, where it is no longer where it was.
        version: Of the dataset, for a submission that does not say it.
        rings: Other rings than the saved ones.
        anyway: Go on by the saved rules where the config's are others.
        out: Where to write the metrics as JSON.
        overrides: `key=value` pairs for the config.
    """

    config: str
    result: str
    data_root: Optional[str] = None
    version: Optional[str] = None
    rings: Optional[Sequence[Tuple[float, float]]] = None
    anyway: bool = False
    out: Optional[str] = None
    overrides: Sequence[str] = ()


def eval_saved(options: EvalSavedOptions) -> Dict[str, float]:
    """Evaluate a kept result, print its tables, and write the metrics where that is asked for.

    Returns:
        All metrics, fractions of one.

    Raises:
        ConfigError: The config's rules are others than the saved ones, or the rules are not known.
        DataError: A file is missing or broken.
    """
    submission, maps = find_results(Path(options.result))
    from ... import compat
    from .metric_tables import print_tables
    compat.apply()
    asked = _Asked(options)
    # all rules are compared before anything is scored
    scorers = [make(path, asked, options) for make, path in ((_detection, submission), (_map, maps))
               if path is not None]
    metrics: Dict[str, float] = {}
    for scorer in scorers:
        metrics.update(scorer())
    print_tables(metrics)
    if options.out:
        print(f'metrics: {write_metrics(metrics, Path(options.out))}')
    return metrics


def find_results(path: Path) -> Tuple[Optional[Path], Optional[Path]]:
    """The submission and the map result that a path stands for.

    Raises:
        DataError: There is neither.
    """
    from ...evaluation.detection_results import SUBMISSION_FILE
    from ...evaluation.map_results import RESULTS_FILE
    if path.is_file():
        return (None, path) if path.suffix == '.npz' else (path, None)
    for folder in (path, path / 'results'):
        found = [folder / name if (folder / name).is_file() else None
                 for name in (SUBMISSION_FILE, RESULTS_FILE)]
        if any(found):
            return found[0], found[1]
    raise DataError(f'{path} holds no results: neither {SUBMISSION_FILE} nor {RESULTS_FILE}; name '
                    'a file, or a folder that tools/test.py wrote')


class _Asked:
    """The rules of a config; none where there is no config."""

    def __init__(self, options: EvalSavedOptions) -> None:
        self.metrics: Dict[str, Any] = {}
        self.dataset: Mapping[str, Any] = {}
        if options.config == NO_CONFIG:
            return
        config = load_config(options.config, options.overrides)
        self.metrics = _built_metrics(config)
        self.dataset = _dataset(config)

    def detection(self) -> Dict[str, Any]:
        """The protocol by which the config scores boxes; empty where it does not."""
        from ...evaluation.detection_results import protocol_of
        metric = self.metrics.get('NuScenesDetectionMetric')
        if metric is None:
            return {}
        tokens, version, split = self._samples()
        return protocol_of({token: [] for token in tokens}, eval_version=metric.eval_version,
                           rings=metric.rings, version=metric.version or version, split=split)

    def map(self) -> Dict[str, Any]:
        """The protocol by which the config scores maps; empty where it does not."""
        from ...evaluation.protocol import map_protocol
        metric = self.metrics.get('BEVMapIoUMetric')
        if metric is None:
            return {}
        tokens, version, split = self._samples()
        classes = metric.classes or (self.dataset.get('metainfo') or {}).get('map_classes')
        grid = next((step for step in self.dataset.get('pipeline', ())
                     if step['type'] == 'LoadBEVMapMasks'), {})
        raster = grid.get('raster', 'devkit') if grid else None
        return map_protocol(classes=classes, thresholds=metric.thresholds, rings=metric.rings,
                            grid={**grid, 'raster': raster}, tokens=tokens, version=version,
                            split=split)

    def _samples(self) -> Tuple[List[str], str, str]:
        """Tokens, version and name of the samples that the config tests on."""
        from ...datasets.info_files import read_info_file
        path = Path(self.dataset.get('data_root', ''), self.dataset['ann_file'])
        infos = read_info_file(path)
        tokens = [info['token'] for info in infos['data_list']]
        indices = self.dataset.get('indices')
        if isinstance(indices, int):
            tokens = tokens[:indices]
        elif indices is not None:
            tokens = [tokens[index] for index in indices]
        return tokens, infos['metainfo']['version'], path.name


def _built_metrics(config: Config) -> Dict[str, Any]:
    """The metrics of a config's tests, by the names of their classes."""
    from mmdet3d.registry import METRICS
    from mmengine.registry import init_default_scope
    init_default_scope(config.get('default_scope', 'mmdet3d'))
    evaluators = config.get('test_evaluator') or []
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    metrics = [METRICS.build(dict(evaluator)) for evaluator in evaluators]
    return {type(metric).__name__: metric for metric in metrics}


def _dataset(config: Config) -> Mapping[str, Any]:
    from ..configuration.preflight import leaf_datasets
    loader = config.get('test_dataloader')
    if loader is None:
        raise ConfigError('the config has no test_dataloader, so it says nothing of a test; give '
                          f'{NO_CONFIG!r} for CONFIG')
    return next(leaf_datasets(loader['dataset'], 'test_dataloader.dataset'))[1]


def _detection(path: Path, asked: _Asked, options: EvalSavedOptions) -> Scorer:
    from ...evaluation.detection_results import load_submission, score_submission
    saved = load_submission(path)
    wanted = asked.detection()
    rules = dict(saved.protocol or wanted)
    _compare(path, rules, wanted, options)
    _describe(path, saved.protocol, saved.conditions)
    metric = asked.metrics.get('NuScenesDetectionMetric')
    data_root = options.data_root or getattr(metric, 'data_root', None) or saved.data_root
    version = rules.get('version') or options.version
    if data_root is None or version is None:
        raise ConfigError(f'{path} does not say of which dataset it is; give a config, or '
                          '--data-root and --version')
    from ...evaluation.rings import DEFAULT_RINGS
    rings = options.rings or [tuple(ring) for ring in rules.get('rings', DEFAULT_RINGS)]

    def score() -> Dict[str, float]:
        scores = score_submission(
            saved.boxes, data_root=data_root, version=version, rings=rings,
            eval_version=rules.get('eval_version', 'detection_cvpr_2019'))
        return {f'object/{name}': value for name, value in scores.metrics.items()}
    return score


def _map(path: Path, asked: _Asked, options: EvalSavedOptions) -> Scorer:
    from ...evaluation.map_results import load_map_results, map_metrics, with_rings
    saved = load_map_results(path)
    _compare(path, saved.protocol, asked.map(), options)
    _describe(path, saved.protocol, saved.conditions)

    def score() -> Dict[str, float]:
        counted = with_rings(saved, options.rings, path.parent) if options.rings else saved
        return {f'map/{name}': value for name, value in map_metrics(counted).items()}
    return score


def _compare(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any],
             options: EvalSavedOptions) -> None:
    from ...evaluation.protocol import differences
    if options.rings:
        asked = {key: value for key, value in asked.items() if key != 'rings'}
    found = differences(saved, asked)
    if found and not options.anyway:
        raise ConfigError(f'{path} was made by other rules than {options.config} asks for: '
                          f'{"; ".join(found)}; --anyway scores it by the saved ones')
    for line in found:
        print(f'{path.name}: scored by the saved rules, not the config\'s: {line}')


def _describe(path: Path, protocol: Optional[Mapping[str, Any]],
              conditions: Optional[Mapping[str, Any]]) -> None:
    """Say by which rules a result was made, and how."""
    if protocol is None:
        print(f'{path}: nothing is known of its protocol')
        return
    left_out = ('protocol', 'task', 'samples_sha256')
    for title, facts in (('protocol', protocol), ('conditions', conditions or {})):
        text = ', '.join(f'{key} {value}' for key, value in facts.items()
                         if key not in left_out and value not in (None, [], {}))
        if text:
            print(f'{path.name}: {title}: {text}')
