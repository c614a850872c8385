"""What is worth knowing before a training of days: each check is one line.

The model is built once, and a few iterations of the real training step are timed on real batches
in this process; nothing is written to the run's folder.
"""
import logging
import platform
import shutil
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from ...checkpoints.fingerprint import class_lists_of
from ...checkpoints.geometry import geometry_of
from ...checkpoints.loading import LoadPlan, parse_sources, plan_load
from ...checkpoints.matching import require_related
from ...errors import DataError, UserError
from ...units import readable_size
from ..configuration.preflight import check_config

_FRAMES = 100  # of which files are looked for
_GIB = 2**30


@dataclass(frozen=True)
class Result:
    """One line of the list.

    Attributes:
        title: What was looked at.
        passed: Whether training can start.
        detail: What was found.
    """

    title: str
    passed: bool
    detail: str


@dataclass
class _Findings:
    """What one check leaves for the next."""

    config: Config
    iterations: int
    model: Optional[nn.Module] = None
    loader: Any = None
    seconds: List[float] = field(default_factory=list)


def checks() -> Dict[str, Callable[[_Findings], str]]:
    """The checks in their order, by title; each returns what it found, or raises."""
    return {'environment': _environment, 'imports': _imports, 'config': _config, 'data': _data,
            'model': _model, 'checkpoint': _checkpoint, 'gates (GCA)': _gates,
            'memory (dry run)': _memory, 'disk': _disk, 'duration': _duration}


def run_checks(config: Config, *, iterations: int) -> Iterator[Result]:
    """Run every check; one that fails does not keep the others from running, where they can.

    Args:
        config: Resolved, with `work_dir`, `load_from` and `resume` set.
        iterations: Training iterations of the dry run, at least 2.
    """
    findings = _Findings(config=config, iterations=max(iterations, 2))
    for title, check in checks().items():
        with _only_warnings():
            result = _run(title, check, findings)
        yield result


def _run(title: str, check: Callable[[_Findings], str], findings: _Findings) -> Result:
    try:
        return Result(title, True, check(findings))
    except UserError as error:
        return Result(title, False, str(error))
    except torch.cuda.OutOfMemoryError as error:
        return Result(title, False, f'out of GPU memory: {str(error).splitlines()[0]}; use a '
                                    'smaller --batch-size with --accumulate')


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Keep what building a dataset, model or optimizer tells out of the list of checks."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _environment(findings: _Findings) -> str:
    devices = [torch.cuda.get_device_properties(index)
               for index in range(torch.cuda.device_count())]
    names = ', '.join(f'{gpu.name} ({gpu.total_memory / _GIB:.0f} GiB)' for gpu in devices)
    return (f'Python {platform.python_version()}, torch {torch.__version__}, '
            f'{names or "no GPU: training runs on the CPU"}')


def _imports(findings: _Findings) -> str:
    from importlib.metadata import version
    names = ('mmengine', 'mmdet', 'mmdet3d', 'numpy')
    return ', '.join(f'{name} {version(name)}' for name in names)


def _config(findings: _Findings) -> str:
    check_config(findings.config, mode='train')
    return f'{findings.config.filename}, to {findings.config.work_dir}'


def _data(findings: _Findings) -> str:
    init_default_scope(findings.config.get('default_scope', 'mmdet3d'))
    findings.loader = Runner.build_dataloader(findings.config.train_dataloader, seed=0)
    missing, looked, found = [], 0, []
    for name in ('train_dataloader', 'val_dataloader'):
        if findings.config.get(name) is None:
            continue
        dataset = findings.loader.dataset if name == 'train_dataloader' else \
            Runner.build_dataloader(findings.config[name], seed=0).dataset
        found.append(f'{len(dataset):,} samples in {name.split("_")[0]}')
        for path in _files_of(dataset):
            looked += 1
            if not path.is_file():
                missing.append(path)
    if missing:
        raise DataError(f'{len(missing)} of {looked} files named by the info files are missing '
                        f'({missing[0]}, ...); "tools/create_data.py --verify" lists them all')
    return f'{", ".join(found)}; {looked} files of them looked for, all there'


def _files_of(dataset: Any) -> Iterator[Path]:
    """Files of up to `_FRAMES` key frames, evenly spread."""
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        return
    for index in range(0, len(dataset), max(len(dataset) // _FRAMES, 1)):
        info = dataset.get_data_info(index)
        lidar = info.get('lidar_points') or {}
        paths = [lidar.get('lidar_path')]
        paths += [image.get('img_path') for image in (info.get('images') or {}).values()]
        paths += [(sweep.get('lidar_points') or {}).get('lidar_path')
                  for sweep in info.get('lidar_sweeps') or ()]
        yield from (Path(path) for path in paths if path)


def _model(findings: _Findings) -> str:
    findings.model = MODELS.build(findings.config.model)
    count = sum(parameter.numel() for parameter in findings.model.parameters())
    return f'{type(findings.model).__name__}, {count:,} parameters'


def _checkpoint(findings: _Findings) -> str:
    sources = findings.config.get('load_from')
    if not sources:
        return 'none: training begins from fresh weights'
    if findings.config.get('resume'):
        return f'goes on from {sources}'
    plan = _load_plan(findings, [sources] if isinstance(sources, str) else list(sources))
    require_related(plan.report)
    _required(findings.model).load_state_dict(plan.weights)
    fresh = ', '.join(summary.module for summary in plan.report.fresh_modules()) or 'nothing'
    return (f'{len(plan.report.reused)} tensors reused, {len(plan.report.fresh)} fresh ({fresh}), '
            f'{len(plan.report.unexpected)} not used')


def _load_plan(findings: _Findings, sources: Sequence[str]) -> LoadPlan:
    model = _required(findings.model)
    hook = findings.config.default_hooks.checkpoint
    return plan_load(
        model.state_dict(), parse_sources(sources),
        parameters=dict(model.named_parameters()).keys(), geometry=geometry_of(findings.config),
        class_lists=class_lists_of(getattr(findings.loader.dataset, 'metainfo', None)),
        source_classes=hook.get('source_classes') or {})


def _gates(findings: _Findings) -> str:
    gates = getattr(_required(findings.model), 'task_gca', None) or {}
    if not len(gates):
        return 'none'
    counts = {name: sum(p.numel() for p in gate.parameters()) for name, gate in gates.items()}
    return ', '.join(f'{name}: {count:,} parameters' for name, count in counts.items())


def _memory(findings: _Findings) -> str:
    model = _required(findings.model).to(get_device()).train()
    wrapper = build_optim_wrapper(model, findings.config.optim_wrapper)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    findings.seconds = _train_a_little(model, wrapper, findings)
    if torch.cuda.is_available():
        peak, total = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1]
        return f'{peak / _GIB:.1f} of {total / _GIB:.1f} GiB of the GPU at most'
    return f'{_peak_of_process() / _GIB:.1f} GiB of this process at most'


def _train_a_little(model: nn.Module, wrapper: OptimWrapper, findings: _Findings) -> List[float]:
    """Seconds of each of a few iterations, loading included."""
    from ..loop.micro_batches import train_in_parts
    loop = findings.config.train_cfg
    parts = loop.get('accumulate', 1)
    size = -(-findings.loader.batch_size // parts)
    seconds, start = [], time.perf_counter()
    for number, batch in enumerate(findings.loader, start=1):
        train_in_parts(model, batch, wrapper, part_size=size)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
        if number == findings.iterations:
            break
    return seconds


def _peak_of_process() -> float:
    """Bytes that this process held at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if platform.system() == 'Darwin' else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _disk(findings: _Findings) -> str:
    number, needed = _checkpoints_kept(findings.config), _checkpoint_size(findings)
    folder = Path(findings.config.work_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    # one more is written before the oldest is deleted
    total = (number + 1) * needed
    text = (f'{number} checkpoints of {readable_size(needed)} and one in the making: '
            f'{readable_size(total)}; {readable_size(free)} free in {folder}')
    if total > free:
        raise DataError(f'{text}; free some space, or keep fewer with '
                        'default_hooks.checkpoint.max_keep_ckpts')
    return text


def _checkpoint_size(findings: _Findings) -> float:
    """Weights, and for each parameter the two moments of AdamW, in bytes."""
    model = _required(findings.model)
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return state + 2 * sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)


def _checkpoints_kept(config: Mapping[str, Any]) -> int:
    hook, loop = config['default_hooks']['checkpoint'], config['train_cfg']
    kept = hook.get('max_keep_ckpts', -1)
    unit = loop.get('max_epochs') if hook.get('by_epoch', True) else loop.get('max_iters')
    written = -(-int(unit or 1) // max(int(hook.get('interval', 1)), 1))
    best = hook.get('save_best')
    extra = 0 if not best else 1 if isinstance(best, str) else len(best)
    return (min(kept, written) if kept > 0 else written) + extra


def _duration(findings: _Findings) -> str:
    if len(findings.seconds) < 2:
        raise DataError('the dry run made no two iterations, so nothing can be said of the '
                        'duration')
    step = statistics.median(findings.seconds[1:])  # the first one starts the workers
    epochs, length = findings.config.train_cfg.get('max_epochs', 1), len(findings.loader)
    total = step * length * epochs
    return (f'{step:.2f} s an iteration (median of {len(findings.seconds) - 1}), {length:,} '
            f'iterations an epoch, {epochs} epochs: {_readable_time(total)} without validation')


def _readable_time(seconds: float) -> str:
    for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
        if seconds >= size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} seconds'


def _required(model: Optional[nn.Module]) -> Any:
    if model is None:
        raise DataError('needs the checks before it, which failed')
    return model
