"""Loading part of a checkpoint, and training while one is written."""
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import torch
from torch import nn

from bevfusion_enhanced.benchmarks.measure import (
    Measurement,
    milliseconds,
    private_growth_mb,
    side_by_side,
    times_of,
)
from bevfusion_enhanced.benchmarks.whole_model import build_model
from bevfusion_enhanced.checkpoints.background import BackgroundWriter
from bevfusion_enhanced.checkpoints.loading import LoadSource, plan_load
from bevfusion_enhanced.checkpoints.snapshot import Snapshot, tensor_sizes
from bevfusion_enhanced.checkpoints.storage import read_checkpoint, write_checkpoint

OF_PHASE_3 = 'task_gca.'  # what phase 3 lacks


def _megabytes(state: Dict[str, torch.Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in state.values()) / 1e6


def partial_load() -> Measurement:
    """From a checkpoint of phase 3 into the model of phase 4a; the reference reads all tensors."""
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(with_map=True)
        state = model.state_dict()
        path = Path(folder, 'phase3.pth')
        write_checkpoint(dict(meta={}, state_dict={
            name: value for name, value in state.items() if not name.startswith(OF_PHASE_3)}), path)
        names = {name for name, _ in model.named_parameters()}

        def ours() -> Any:
            plan = plan_load(model.state_dict(), [LoadSource(str(path), None)], parameters=names,
                             geometry={}, class_lists={})
            model.load_state_dict(plan.weights)
            return plan.report

        def reference() -> Any:
            return torch.load(path, map_location='cpu', weights_only=True)

        report = ours()
        loaded = len(report.reused) if hasattr(report, 'reused') else len(state)
        mine, theirs = side_by_side(ours, reference, repeats=7)
        mapped = milliseconds(lambda: read_checkpoint(path, mmap=True), repeats=7)
        copied = milliseconds(
            lambda: model.load_state_dict(reference()['state_dict'], strict=False), repeats=7)
        peak = private_growth_mb(ours)
        size = os.path.getsize(path)
    return Measurement(
        ours_ms=mine, reference_ms=theirs, peak_mb=peak, traffic=2.0 * size,
        conditions=f'{size / 1e6:.0f} MB, {loaded} tensors, read, matched, checked and copied into '
                   'the model; file in the system\'s cache; memory beyond the model\'s and the '
                   'file\'s pages; the reference is `torch.load` of the file, which is not mapped',
        details={'mapping_the_file_alone_ms': round(mapped, 1),
                 'torch_load_and_load_state_dict_ms': round(copied, 1),
                 'model_mb': round(_megabytes(state)),
                 'largest_tensor_mb': round(max(t.numel() * t.element_size()
                                                for t in state.values()) / 1e6, 1)})


def _step(model: nn.Module) -> Callable[[], None]:
    x = torch.randn(1, 128, 90, 90)

    def step() -> None:
        model(x).square().mean().backward()

    return step


def _steps_while(step: Callable[[], None], writer: BackgroundWriter,
                 copied: threading.Event) -> Tuple[float, float, int]:
    """Milliseconds of a step, of the write, and how many steps there were until it was done."""
    start, count = time.perf_counter(), 0
    while writer.busy or count == 0:
        step()
        copied.wait()  # as the optimizer does
        count += 1
    spent = 1e3 * (time.perf_counter() - start)
    return spent / count, spent, count


def checkpoint_saving() -> Measurement:
    """A step beside a write of the full model and its optimizer; the reference has no write."""
    model = build_model(with_map=True)
    moments = {name: dict(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
               for name, p in model.named_parameters()}
    content = dict(meta={}, state_dict=model.state_dict(), optimizer=moments)
    unchanging = {tensor.data_ptr() for tensor in [*model.parameters(), *(
        tensor for pair in moments.values() for tensor in pair.values())]}
    decoder = nn.Sequential(*[nn.Conv2d(128, 128, 3, padding=1) for _ in range(4)])
    step, writer, snapshot = _step(decoder), BackgroundWriter(), Snapshot()
    snapshot.reserve(tensor_sizes(content))
    alone, beside, counts, pauses, rises = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'epoch.pth')
        for _ in range(5):
            alone.append(milliseconds(step, repeats=9))
            start = time.perf_counter()
            snapshot.begin()
            copied = snapshot.copy(content, unchanging=unchanging)
            pauses.append(1e3 * (time.perf_counter() - start))
            complete = threading.Event()

            def write(copied: Any = copied, complete: threading.Event = complete) -> None:
                snapshot.complete()
                complete.set()
                write_checkpoint(copied, path)

            writer.submit(write)
            spent, duration, count = _steps_while(step, writer, complete)
            beside.append(spent)
            counts.append(count)
            rises.append((pauses[-1] + count * (spent - alone[-1])) / (pauses[-1] + duration))
            error = writer.take_error()
            if error is not None:
                raise error
        blocking = 1e3 * min(times_of(lambda: write_checkpoint(content, path), repeats=2))
        size = os.path.getsize(path)
    middle = len(alone) // 2
    return Measurement(
        ours_ms=sorted(beside)[middle], reference_ms=sorted(alone)[middle],
        conditions=f'{size / 1e6:.0f} MB written in the background of steps on all threads',
        details={'rise_of_the_steps_over_the_write': round(sorted(rises)[middle], 3),
                 'wait_before_the_next_step_ms': round(sorted(pauses)[middle], 1),
                 'write_in_the_foreground_ms': round(blocking, 1),
                 'steps_during_a_write': sorted(counts)[middle]})
