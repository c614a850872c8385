"""`tools/preflight.py` as a function: check, ask, train."""
import gc

import torch
from rich.console import Console

from ...errors import ConfigError
from ...experiments.commands import agreed
from .long_run_checks import checks, run_checks
from .train import TrainOptions, planned_config, run


def check_and_train(options: TrainOptions, *, yes: bool, iterations: int) -> None:
    """Print a line for each check; train once they have passed and that was agreed to.

    Args:
        options: Of the training.
        yes: Start without asking.
        iterations: Training iterations of the dry run.

    Raises:
        ConfigError: A check failed; nothing was started.
    """
    console = Console()
    config = planned_config(options)
    if config is None:
        return
    total, failed = len(checks()), []
    for number, result in enumerate(run_checks(config, iterations=iterations), start=1):
        failed += [] if result.passed else [result.title]
        state = 'ok    ' if result.passed else 'FAILED'
        console.print(f'[{number}/{total}] {state} {result.title}: {result.detail}',
                      highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise ConfigError(f'{len(failed)} of {total} checks failed ({", ".join(failed)}): nothing '
                          'was started')
    if not (yes or agreed(console, 'start training? [y/N] ')):
        console.print('nothing was started')
        return
    gc.collect()  # the model and the batches of the dry run
    torch.cuda.empty_cache()
    run(config)
