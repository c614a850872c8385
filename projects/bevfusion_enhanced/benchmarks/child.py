"""One benchmark in a process of its own: `python -m bevfusion_enhanced.benchmarks.child NAME ...`.

Prints one line of JSON; what the benchmark itself prints goes to standard error.
"""
import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any, Dict, List

MACHINE = 'machine'  # in place of a name: the rates of the machine


def main(arguments: List[str]) -> None:
    """Run the benchmark `arguments[0]` on `arguments[1]` threads."""
    name, threads = arguments[0], int(arguments[1])
    with redirect_stdout(sys.stderr):
        result = run(name, threads)
    print(json.dumps(result))


def run(name: str, threads: int) -> Dict[str, Any]:
    """What the benchmark found, or the rates of the machine."""
    os.environ.setdefault('OMP_NUM_THREADS', str(threads))
    import torch
    torch.set_num_threads(threads)
    from bevfusion_enhanced.benchmarks.catalogue import find
    from bevfusion_enhanced.benchmarks.measure import measure_machine
    if name == MACHINE:
        return measure_machine()._asdict()
    return asdict(find(name)())


if __name__ == '__main__':
    main(sys.argv[1:])
