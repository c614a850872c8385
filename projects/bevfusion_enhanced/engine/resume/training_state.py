"""The part of a checkpoint that makes a resumed run the same as one never stopped.

    progress     epochs, iterations, batches and samples done, whether a validation is due
    data         seeds of the augmentation and of the order of samples; sizes that give the place
                 in an epoch its meaning
    threads      number of threads of a process, by which sums on a CPU are rounded
    processes    for each process its random states, open gradients and own buffers
    logs         length of each log of the run

Weights, optimizer, schedules, averages and the message hub are in the rest of the checkpoint.
With more than two processes the sums of gradients may be rounded in another order in the first
iteration after a resume, because DistributedDataParallel arranges them anew at every start.
"""
from dataclasses import asdict
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from mmengine.dist import gather_object, get_rank, get_world_size, is_main_process
from mmengine.runner import Runner

from ... import random_state
from ...datasets.sample_keys import order_seed, starts_anywhere
from ...errors import CheckpointError
from ..loop.train_loop import Progress, ResumableTrainLoop, Resumption
from ..parallel import process_state
from ..runs import run_logs

ENTRY = 'training_state'
"""Its key in a checkpoint."""

_VERSION = 1


def gather(runner: Runner) -> Dict[str, Any]:
    """The state of a training after the iteration, epoch or validation that just ended.

    To be called in all processes at once, from a hook after an iteration or epoch that comes after
    those that change anything.

    Returns:
        Plain data, tensors on the CPU and NumPy arrays, none of which training writes to; empty
        in all processes but the first.
    """
    loop = runner.train_loop
    resumable = isinstance(loop, ResumableTrainLoop)
    random = loop.random_state if resumable else random_state.capture()
    processes = gather_object(process_state.capture(runner, random))
    if not is_main_process():
        return {}
    state: Dict[str, Any] = dict(
        version=_VERSION, world_size=get_world_size(), threads=torch.get_num_threads(),
        processes=processes, logs=run_logs.measure(runner))
    if resumable:
        state.update(progress=asdict(loop.progress), data=_data(loop))
    return state


def restore(runner: Runner, state: Mapping[str, Any]) -> Tuple[str, ...]:
    """Prepare a training to go on from a state; it takes effect when its loop begins to run.

    Args:
        runner: A training whose loop has not run yet.
        state: What `gather` returned, in this process or another; empty for a checkpoint of
            MMEngine's own.

    Returns:
        What is not as in a run that was never stopped; nothing where all is.

    Raises:
        CheckpointError: The state is of a later version of this project.
    """
    if not state:
        return ('the checkpoint holds no random states',)
    if state.get('version', 0) > _VERSION:
        raise CheckpointError(f'the training state is of version {state["version"]}, this project '
                              f'reads up to {_VERSION}; update the project')
    loop = runner.train_loop
    if not isinstance(loop, ResumableTrainLoop) or 'progress' not in state:
        return ('the place in the epoch, the random states and the logs: only a training by epochs '
                '(train_cfg.type=ResumableTrainLoop) restores them',)
    notes: List[str] = []
    process: Optional[process_state.ProcessState] = None
    if state['world_size'] == get_world_size():
        process = state['processes'][get_rank()]
    else:
        notes.append(f'{state["world_size"]} processes trained before, {get_world_size()} go on: '
                     'random states start afresh, and batches are put together differently')
    if state['threads'] != torch.get_num_threads() and not torch.cuda.is_available():
        notes.append(f'{state["threads"]} threads computed before, {torch.get_num_threads()} do '
                     'now: sums are rounded in another order (OMP_NUM_THREADS sets their number)')
    progress = Progress(**{**state['progress'], 'samples': _samples(loop, state, notes)})
    if order_seed(loop.dataloader) is not None:
        loop.dataloader.sampler.seed = state['data']['order_seed']
    loop.resume_from(Resumption(progress=progress, seed=state['data']['seed'], process=process,
                                logs=state['logs']))
    return tuple(notes)


def _data(loop: ResumableTrainLoop) -> Dict[str, Any]:
    return dict(seed=loop.seed, order_seed=order_seed(loop.dataloader),
                batch_size=loop.dataloader.batch_size, batches=len(loop.dataloader),
                samples=len(loop.dataloader.dataset))


def _samples(loop: ResumableTrainLoop, state: Mapping[str, Any], notes: List[str]) -> int:
    """Samples of this process to leave out: those that all processes have seen, dealt out anew."""
    progress, data = state['progress'], state['data']
    now = _data(loop)
    if now['samples'] != data['samples']:
        notes.append(f'the training data had {data["samples"]} samples and have {now["samples"]} '
                     'now: epochs are put together differently')
    elif now['batches'] != data['batches']:
        notes.append(f'an epoch had {data["batches"]} iterations and has {now["batches"]} now: '
                     'what is counted in iterations ends at another epoch')
    if not progress['samples']:
        return 0
    if not starts_anywhere(loop.dataloader):
        notes.append('the batch sampler of train_dataloader cannot start in the middle: the epoch '
                     'under way starts again')
        return 0
    seen = progress['samples'] * state['world_size']
    samples, again = divmod(seen, get_world_size())
    if again:
        notes.append(f'{again} samples of the epoch under way are seen twice')
    return samples
