"""An ablation: a config that changes one thing, a seed, and the folder that its run lives in.

    work_dirs/ablations/
        <name>/seed_<n>.py      the config as it is run
        <name>/seed_<n>.log     what its training and its test printed
        <name>/seed_<n>/        the run's folder, with the test's in `test/`
        <name>/seed_<n>.json    what came out, once all is done
        <name>/complexity.json  parameters and operations
        table.md, .csv, .png, runs.csv
"""
import ast
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmengine.config import Config

from ..checkpoints.config_difference import differences
from ..checkpoints.durable import replace_bytes
from ..errors import ConfigError

ROOT = 'work_dirs/ablations'
_EVALUATION_IN_TRAINING = ('val_dataloader', 'val_cfg', 'val_evaluator')


@dataclass(frozen=True)
class Ablation:
    """A config of `configs/ablations/`, or any other.

    Attributes:
        name: Of its file.
        path: The file.
        question: What it asks, in words.
        trained_as: Name of the ablation whose weights are tested; None trains its own.
        reference: Whether the others are compared with it.
        config: Resolved, with the base that was asked for.
    """

    name: str
    path: Path
    question: str
    trained_as: Optional[str]
    reference: bool
    config: Config = field(compare=False, repr=False)


@dataclass(frozen=True)
class Job:
    """One ablation under one seed."""

    ablation: Ablation
    seed: int
    root: Path

    @property
    def title(self) -> str:
        """For people."""
        return f'{self.ablation.name}, seed {self.seed}'

    @property
    def stem(self) -> Path:
        """Path of its files, without their endings; the run's folder."""
        return self.root / self.ablation.name / f'seed_{self.seed}'

    @property
    def config(self) -> Path:
        """The config as it is run."""
        return self.stem.with_suffix('.py')

    @property
    def log(self) -> Path:
        """What its processes printed."""
        return self.stem.with_suffix('.log')

    @property
    def result(self) -> Path:
        """What came out."""
        return self.stem.with_suffix('.json')

    @property
    def trains(self) -> bool:
        """Whether it trains weights of its own."""
        return self.ablation.trained_as is None

    def trained_by(self) -> Path:
        """Folder of the run whose weights it tests."""
        return self.stem if self.trains else self.root / str(self.ablation.trained_as) / \
            self.stem.name


def read_ablations(paths: Sequence[str], *, base_config: Optional[str] = None) -> List[Ablation]:
    """Read configs; those that others are trained as are added where they are not named.

    Args:
        paths: Config files.
        base_config: Read them over this config, in place of their own `_base_`.

    Raises:
        ConfigError: A file cannot be read, two have one name, or one is trained as another that
            does not exist.
    """
    found: Dict[str, Ablation] = {}
    pending = list(paths)
    while pending:
        ablation = read_ablation(Path(pending.pop(0)), base_config=base_config)
        if ablation.name in found:
            raise ConfigError(f'{ablation.path}: {found[ablation.name].path} has the same name; '
                              'rename one')
        found[ablation.name] = ablation
        needed = ablation.trained_as
        names = {Path(path).stem for path in pending} | set(found)
        if needed is not None and needed not in names:
            file = ablation.path.with_name(f'{needed}.py')
            if not file.is_file():
                raise ConfigError(f'{ablation.path}: ablation.trained_as is {needed!r}, but there '
                                  f'is no {file}')
            pending.append(str(file))
    for ablation in found.values():
        if ablation.trained_as and found[ablation.trained_as].trained_as:
            raise ConfigError(f'{ablation.path}: ablation.trained_as names {ablation.trained_as}, '
                              'which is not trained itself')
    return list(found.values())


def read_ablation(path: Path, *, base_config: Optional[str] = None) -> Ablation:
    """Read one config; see `read_ablations`."""
    from ..engine.configuration.config import load_config
    config = (load_config(str(path)) if base_config is None
              else load_rebased(path, base_config))
    about = config.get('ablation') or {}
    unknown = sorted(set(about) - {'question', 'trained_as', 'reference'})
    if unknown:
        raise ConfigError(f'{path}: ablation has no {unknown}; it has question, trained_as, '
                          'reference')
    return Ablation(name=path.stem, path=path, question=about.get('question', ''),
                    trained_as=about.get('trained_as'), reference=bool(about.get('reference')),
                    config=config)


def load_rebased(path: Path, base: str) -> Config:
    """Read a config over another base than the one that it names.

    What it takes from its base (`{{_base_.x}}`) comes from the new one.

    Raises:
        ConfigError: It names no base or several, or cannot be read over the new one.
    """
    from ..engine.configuration.config import load_config
    if not Path(base).is_file():
        raise ConfigError(f'--base-config {base}: there is no such file')
    text = replace_base(path, str(Path(base).absolute()))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(text, encoding='utf-8')
        try:
            return load_config(str(copy))
        except ConfigError as error:
            reason = str(error).replace(str(copy), str(path))
            raise ConfigError(f'{reason} (over --base-config {base})') from error


def replace_base(path: Path, base: str) -> str:
    """The text of a config with its `_base_` replaced by the path of another."""
    if not path.is_file():
        raise ConfigError(f'config {path} does not exist')
    text = path.read_text(encoding='utf-8')
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f'config {path}: {error.msg} (line {error.lineno}); correct it') \
            from error
    bases = [node for node in tree.body if isinstance(node, ast.Assign)
             and any(isinstance(target, ast.Name) and target.id == '_base_'
                     for target in node.targets)]
    if len(bases) != 1 or not isinstance(bases[0].value, ast.Constant):
        raise ConfigError(f"config {path}: --base-config replaces one base, _base_ = 'FILE', and "
                          'this config has another form; give it one')
    lines = text.splitlines(keepends=True)
    lines[bases[0].lineno - 1:bases[0].end_lineno] = [f'_base_ = {base!r}\n']
    return ''.join(lines)


def config_of(ablation: Ablation, *, seed: int, epochs: int) -> Config:
    """The config of one run: so many epochs, this seed, evaluated once, at its end."""
    from ..engine.configuration.settings import set_epochs
    config = ablation.config.copy()
    set_epochs(config, epochs)
    for part in _EVALUATION_IN_TRAINING:
        config[part] = None
    config.randomness = dict(config.get('randomness') or {}, seed=seed)
    checkpoint = (config.get('default_hooks') or {}).get('checkpoint')
    if checkpoint is not None:
        checkpoint.update(interval=1, max_keep_ckpts=1, save_best=None)
    config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type='StepCostHook')]
    return config


def write_config(job: Job, config: Config) -> None:
    """Write a job's config, unless it lies there.

    Raises:
        ConfigError: The folder holds a run of other settings.
    """
    if job.config.is_file():
        before = Config.fromfile(str(job.config), import_custom_modules=False)
        changed = differences(before, config)
        if not changed:
            return
        if job.stem.exists() or job.result.exists():
            first = '; '.join(f'{item.key}: {item.old} -> {item.new}' for item in changed[:3])
            raise ConfigError(f'{job.stem} holds a run of other settings ({first}); give another '
                              '--work-dir, or move it away')
    job.config.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(config.pretty_text.encode(), job.config)


@dataclass(frozen=True)
class Result:
    """What came out of a job.

    Attributes:
        metrics: As the test wrote them.
        step_seconds: Median time of a training step; None for a job that trains nothing.
        peak_gb: Most memory of its training; None likewise.
        origin: Digest of the config and the checkpoint that it began from.
    """

    metrics: Dict[str, Optional[float]]
    step_seconds: Optional[float]
    peak_gb: Optional[float]
    origin: str


def read_result(job: Job) -> Optional[Result]:
    """What came out of a job that is done; None for one that is not."""
    try:
        return Result(**json.loads(job.result.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_result(job: Job, result: Result) -> None:
    """Keep what came out, in one step."""
    replace_bytes((json.dumps(asdict(result), indent=2) + '\n').encode(), job.result)


def origin_of(config: Path, checkpoint: Optional[str]) -> str:
    """A digest that changes with the config of a run or with what it begins from."""
    digest = hashlib.sha256(config.read_bytes())
    if checkpoint is not None:
        from ..checkpoints.sidecar import sidecar_of
        path = Path(checkpoint)
        sums = sidecar_of(path)
        facts = sums.read_text().split()[0] if sums.is_file() else \
            f'{os.path.getsize(path)} {os.stat(path).st_mtime_ns}'
        digest.update(facts.encode())
    return digest.hexdigest()


def numbers(metrics: Mapping[str, Any]) -> Dict[str, Optional[float]]:
    """The metrics that are numbers, or undefined."""
    return {name: value for name, value in metrics.items()
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))}
