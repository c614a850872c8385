"""Benchmarks: ours beside the published algorithm and beside what the machine could do at best.

Each subject is a function that returns a `Measurement`; `catalogue` names them, `runner` runs each
in a process of its own, so that its peak of memory is its own. References are written here from the
published algorithms, and must give the same numbers before either side is timed.
"""
