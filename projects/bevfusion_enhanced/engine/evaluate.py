"""`tools/test.py` as a function: a config and a checkpoint, to metrics on disk and on screen."""
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from mmengine.config import Config

from .config import default_work_dir, load_config
from .train import prepare


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line asks for.

    Attributes:
        config: Path of the config file.
        checkpoint: The weights to test; every tensor of the model has to be in it.
        work_dir: Where the results go; `test` in the training's default folder when left out.
        show_dir: Where pictures of a few samples go; none are drawn when left out.
        trust_checkpoint: Read the checkpoint with everything in it, code included.
        overrides: `key=value` pairs for the config.
        launcher: How several processes were started, as MMEngine names it.
    """

    config: str
    checkpoint: str
    work_dir: Optional[str] = None
    show_dir: Optional[str] = None
    trust_checkpoint: bool = False
    overrides: Sequence[str] = ()
    launcher: str = 'none'


def evaluate(options: EvaluateOptions) -> Dict[str, Any]:
    """Evaluate a checkpoint; write `<work_dir>/<timestamp>/metrics.json` and print the tables.

    Returns:
        All metrics, fractions of one.

    Raises:
        UserError: Something asked for is missing or wrong, or the checkpoint does not fit.
    """
    config = resolve(options)
    from mmengine.dist import is_main_process
    from mmengine.runner import Runner

    from .. import compat
    from .metric_tables import print_tables
    from .preflight import check_config, trust_named_checkpoints
    compat.apply()
    if options.trust_checkpoint:
        trust_named_checkpoints(config)
    check_config(config, mode='test')
    runner = Runner.from_cfg(config)
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
    folder = options.work_dir or str(
        Path(config.get('work_dir') or default_work_dir(options.config)) / 'test')
    prepare(config, options.config, work_dir=folder, launcher=options.launcher)
    config.load_from, config.resume = options.checkpoint, False
    if options.show_dir:
        hook = dict(type='BEVFusionVisualizationHook', out_dir=options.show_dir)
        config.custom_hooks = [*config.get('custom_hooks', []), hook]
    return config


def write_metrics(metrics: Mapping[str, Any], path: Path) -> Path:
    """Write metrics as JSON; what is undefined (not a number) becomes null."""
    plain = {name: _plain(value) for name, value in metrics.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain, indent=2) + '\n')
    return path


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, 'item') else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
