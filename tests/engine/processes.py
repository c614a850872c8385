"""Real training processes, forked from one that has imported everything, and what they leave."""
import contextlib
import functools
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

CONFIG = '''
custom_imports = dict(
    imports=['bevfusion_enhanced', 'bevfusion_enhanced.engine', 'toy_task', 'exact_task'])
default_scope = 'mmdet3d'
model = dict(type='DropoutModel')
train_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True), dataset=dict(type='RandomDataset'))
val_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='RandomDataset', length=8))
val_evaluator = dict(type='ErrorMetric')
train_cfg = dict(by_epoch=True, max_epochs=4)
val_cfg = dict()
optim_wrapper = dict(type='ScaledOptimWrapper', optimizer=dict(type='AdamW', lr=0.01),
                     accumulative_counts=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=9),
    dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.5)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='PartialLoadCheckpointHook', interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
visualizer = dict(type='Visualizer', vis_backends=[
    dict(type='RunLocalVisBackend'), dict(type='RunTensorboardVisBackend')])
randomness = dict(seed=3)
'''
_CLOCKS = ('time', 'data_time', 'train/time', 'train/data_time', 'val/time', 'val/data_time')


class Child:
    """A forked process, with a group of its own, that runs a function; its output is a file."""

    def __init__(self, main: Callable[[], Any], output: Path) -> None:
        self.output = output
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(main, output))

    def send(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def send_group(self, number: int) -> None:
        """Send a signal to this process and those that it started."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        """The exit code; the negative number of a signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # workers that it left behind
        return os.waitstatus_to_exitcode(status)

    def text(self) -> str:
        """All that it printed so far."""
        return self.output.read_text() if self.output.exists() else ''

    def end(self) -> None:
        """Leave nothing of it behind, however the test ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def start_group(main: Callable[[], Any], output: Path, count: int) -> List[Child]:
    """`count` processes of one training, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]

    def member(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
                          MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        main()

    return [Child(functools.partial(member, rank), output.with_suffix(f'.{rank}.txt'))
            for rank in range(count)]


def _run(main: Callable[[], Any], output: Path) -> int:
    os.setsid()
    with open(output, 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Threads do not survive a fork, so there must be no pool of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(checkpoint: Path) -> Dict[str, Any]:
    """All in a checkpoint that a clock or the name of a folder does not decide."""
    from bevfusion_enhanced.checkpoints.storage import read_checkpoint
    state = read_checkpoint(checkpoint)
    scalars = {name: buffer.data for name, buffer in state['message_hub']['log_scalars'].items()
               if name not in _CLOCKS}
    return dict(
        weights=state['state_dict'], average=state.get('ema_state_dict'),
        optimizer=state['optimizer'], schedules=state['param_schedulers'], scalars=scalars,
        progress=state['training_state']['progress'],
        processes=state['training_state']['processes'],
        epoch=state['meta']['epoch'], iteration=state['meta']['iter'])


def scalar_lines(folder: Path) -> List[Dict[str, Any]]:
    """The lines of `scalars.json`, without times."""
    lines = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _CLOCKS} for line in lines]


def events(folder: Path) -> List[Tuple[str, int, float]]:
    """Every scalar in the event files as it lies there: (tag, step, value), without times."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    found = []
    for path in sorted((folder / 'tensorboard').iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in (*_CLOCKS, 'config/text_summary'):
                    found.append((value.tag, event.step, value.tensor.float_val[0]))
    return found


def assert_same(left: Any, right: Any, where: str = '') -> None:
    """Equal bit for bit, however deep; names the place where it is not."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f'{where}.{key}')
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f'{where}[{index}]')
    elif hasattr(left, 'tobytes') or isinstance(left, torch.Tensor):
        one, other = (value.numpy() if isinstance(value, torch.Tensor) else value
                      for value in (left, right))
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert one.tobytes() == other.tobytes(), where
    else:
        assert left == right, f'{where}: {left!r} != {right!r}'


def assert_same_runs(left: Path, right: Path, checkpoint: str) -> None:
    """Two folders hold the same training: checkpoint, scalars and events."""
    assert_same(trained(left / checkpoint), trained(right / checkpoint), checkpoint)
    assert scalar_lines(left) == scalar_lines(right)
    assert events(left) == events(right)


