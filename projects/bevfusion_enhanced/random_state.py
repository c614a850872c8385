"""The random generators of a process (Python, NumPy, torch): seeded, captured and put back.

The states are plain data (numbers, NumPy arrays, tensors), so that a checkpoint can carry them.
"""
import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import torch

RandomState = Dict[str, Any]

_WORD = (1 << 32) - 1


def derive_seed(*parts: int) -> int:
    """A seed of 64 bits that depends on every part, on their order and on their number."""
    words = [len(parts)]  # SeedSequence ignores zeros at the end
    for part in parts:
        words += [part & _WORD, part >> 32 & _WORD]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def seed_cpu(seed: int) -> None:
    """Seed Python, NumPy and torch's CPU generator, each with a stream of its own."""
    python, numpy, generator = (derive_seed(seed, stream) for stream in range(3))
    random.seed(python)
    np.random.seed([numpy & _WORD, numpy >> 32])
    torch.default_generator.manual_seed(generator >> 1)


def seed_all(seed: int) -> None:
    """Seed the generators of `seed_cpu` and those of all GPUs."""
    seed_cpu(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(derive_seed(seed, 3) >> 1)


def capture_cpu() -> RandomState:
    """The states of Python, NumPy and torch's CPU generator, as plain data."""
    version, words, gauss = random.getstate()
    _, key, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=dict(version=version, words=np.array(words, dtype=np.uint32), gauss=gauss),
        numpy=dict(key=key, position=int(position), has_gauss=int(has_gauss),
                   cached=float(cached)),
        torch=torch.get_rng_state())


def capture() -> RandomState:
    """The states of `capture_cpu` and those of all GPUs, in their order."""
    state = capture_cpu()
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state_all()
    return state


def restore(state: RandomState) -> Tuple[str, ...]:
    """Put back what `capture` or `capture_cpu` returned.

    Returns:
        What could not be put back because the machine has other GPUs.
    """
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(int(word) for word in python['words']),
                     python['gauss']))
    np.random.set_state(('MT19937', np.asarray(numpy['key'], dtype=np.uint32), numpy['position'],
                         numpy['has_gauss'], numpy['cached']))
    torch.set_rng_state(state['torch'].cpu())
    saved = state.get('cuda', [])
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in range(min(len(saved), present)):
        torch.cuda.set_rng_state(saved[device].cpu(), device)
    if saved and len(saved) != present:
        return (f'random states of {len(saved)} GPUs were saved, and there are {present} now',)
    return ()


@contextmanager
def kept() -> Iterator[RandomState]:
    """Put the states aside, and back at the end, whatever is drawn or seeded in between."""
    state = capture()
    try:
        yield state
    finally:
        restore(state)


@contextmanager
def seeded_cpu(seed: int) -> Iterator[None]:
    """Draw from `seed` on the CPU within the block; the states are as before after it."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_cpu(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(generator)
