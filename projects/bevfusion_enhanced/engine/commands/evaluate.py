"""`tools/test.py` as a function: a config and a checkpoint, to metrics on disk and on screen."""
import contextlib
import json
import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence

from mmengine.config import Config

from ...errors import ConfigError
from ...experiments.run_files import RunFiles, run_folder
from ..configuration.config import load_config
from .train import prepare

if TYPE_CHECKING:
    from mmengine.runner import Runner


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line asks for.

    Attributes:
        config: Path of the config file.
        checkpoint: The weights to test; every tensor of the model has to be in it.
        work_dir: Where the results go; `test` in the training's default folder when left out.
        show_dir: Where pictures of a few samples go; none are drawn when left out.
        trust_checkpoint: Read the checkpoint with everything in it, code included.
        tta: Test each sample under several views, see `tta.py`.
        corrupt: What goes wrong in this test, 'NAME' or 'NAME=LEVEL' each, see `corruption.py`.
        save_masks: Keep every sample's map with the results.
        overrides: `key=value` pairs for the config.
        launcher: How several processes were started, as MMEngine names it.
    """

    config: str
    checkpoint: str
    work_dir: Optional[str] = None
    show_dir: Optional[str] = None
    trust_checkpoint: bool = False
    tta: bool = False
    corrupt: Sequence[str] = ()
    save_masks: bool = False
    overrides: Sequence[str] = ()
    launcher: str = 'none'


def evaluate(options: EvaluateOptions) -> Dict[str, Any]:
    """Evaluate a checkpoint; write `<work_dir>/<timestamp>/metrics.json` and print the tables.

    The predictions' results are kept beside it, in `results/`, for `eval_saved.py`.

    Returns:
        All metrics, fractions of one.

    Raises:
        UserError: Something asked for is missing or wrong, or the checkpoint does not fit.
    """
    config = resolve(options)
    from mmengine.dist import is_main_process
    from mmengine.runner import Runner

    from ... import compat
    from ...ops.memory import keep_freed_memory
    from ..configuration.preflight import check_config, trust_named_checkpoints
    from .metric_tables import print_tables
    compat.apply()
    if options.trust_checkpoint:
        trust_named_checkpoints(config)
    check_config(config, mode='test')
    change_test(config, options)
    keep_freed_memory()
    runner = Runner.from_cfg(config)
    keep_results(runner, options)
    metrics = runner.test()
    if is_main_process():
        path = write_metrics(metrics, Path(runner.log_dir) / 'metrics.json')
        print_tables(metrics)
        print(f'metrics: {path}')
    return metrics


def resolve(options: EvaluateOptions) -> Config:
    """The config with the options of the command line in it.

    Raises:
        ConfigError: The config is missing or unreadable.
    """
    config = load_config(options.config, options.overrides)
    config.work_dir = options.work_dir or str(
        Path(config.get('work_dir') or run_of(options.checkpoint, options.config)) / 'test')
    prepare(config, launcher=options.launcher)
    config.load_from, config.resume = options.checkpoint, False
    if options.show_dir:
        hook = dict(type='BEVFusionVisualizationHook', out_dir=options.show_dir)
        config.custom_hooks = [*config.get('custom_hooks', []), hook]
    return config


def run_of(checkpoint: str, config: str) -> Path:
    """The folder of the run that wrote a checkpoint; where it is in none, the config's own."""
    files = RunFiles(Path(checkpoint).parent.parent)
    return files.folder if files.is_run else run_folder(config)


def change_test(config: Config, options: EvaluateOptions) -> None:
    """Put what the command line asks of a test into its checked config, in place.

    Raises:
        ConfigError: It does not fit the config.
    """
    from ..configuration.corruption import use_corruptions
    from ..configuration.tta import use_tta
    if options.tta:
        if options.show_dir:
            raise ConfigError('--show-dir draws what a single pass saw; leave it out, or --tta')
        use_tta(config)
    use_corruptions(config, options.corrupt)


def keep_results(runner: 'Runner', options: EvaluateOptions) -> None:
    """Let the metrics keep their results in the run's folder, with how they came about."""
    from ...evaluation import BEVMapIoUMetric
    from ...evaluation.once_per_sample import OncePerSampleMetric
    conditions = dict(config=options.config, checkpoint=options.checkpoint, tta=options.tta,
                      corrupt=list(options.corrupt), overrides=list(options.overrides),
                      software=software_versions())
    for metric in runner.test_loop.evaluator.metrics:
        if isinstance(metric, OncePerSampleMetric):
            metric.save_to(Path(runner.log_dir) / 'results', conditions)
        if options.save_masks and isinstance(metric, BEVMapIoUMetric):
            metric.save_masks = True


def software_versions() -> Dict[str, str]:
    """Of the packages that scores may depend on; those that are not installed are left out."""
    found = {}
    for name in ('bevfusion_enhanced', 'torch', 'mmdet3d', 'nuscenes-devkit', 'numpy', 'shapely'):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_metrics(metrics: Mapping[str, Any], path: Path) -> Path:
    """Write metrics as JSON; what is undefined (not a number) becomes null."""
    plain = {name: _plain(value) for name, value in metrics.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain, indent=2) + '\n')
    return path


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, 'item') else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
