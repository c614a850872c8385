"""Measure ours, published algorithms and the machine: python tools/benchmark.py [--only ...]."""
import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional

DOCS = Path(__file__).parents[1] / 'docs' / 'benchmarks.md'


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description='Median times of ours and of the reference '
                                     'algorithm, the bound of the machine, and peak memory.')
    parser.add_argument('--only', metavar='NAME', nargs='+', action='extend', default=[],
                        help='run these alone')
    parser.add_argument('--list', action='store_true', help='show the names')
    parser.add_argument('--json', metavar='FILE', type=Path, help='write the table as JSON')
    parser.add_argument('--png', metavar='FILE', type=Path,
                        default=Path('work_dirs/benchmarks.png'),
                        help='where the picture goes (default: %(default)s)')
    parser.add_argument('--write-docs', action='store_true',
                        help='write docs/benchmarks.md and docs/benchmarks.png')
    parser.add_argument('--mmdetection3d', metavar='DIR', type=Path,
                        help='a checkout of MMDetection3D v1.4.0, to measure its BEVFusion beside '
                        'ours')
    parser.add_argument('--threads', type=int, default=os.cpu_count() or 1,
                        help='of torch (default: all cores, %(default)s)')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measure and show."""
    from bevfusion_enhanced.benchmarks import runner
    from bevfusion_enhanced.benchmarks.names import NAMES

    names = runner.check_names(args.only, list(NAMES))
    if args.list:
        for name in names:
            print(f'{name:20s} {NAMES[name]}')
        return
    if args.mmdetection3d:
        runner.check_checkout(args.mmdetection3d)
    else:
        names = runner.without_checkout(names, chosen=args.only)
    report = runner.measure(names, threads=args.threads, checkout=args.mmdetection3d)
    runner.show(report)
    if args.json:
        runner.write_json(report, args.json)
    runner.draw(report, args.png)
    if args.write_docs:
        runner.write_markdown(report, DOCS)
        runner.draw(report, DOCS.with_suffix('.png'))


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, measure, and return the exit status."""
    args = parse_args(argv)
    os.environ['BEVFUSION_ENHANCED_LAZY'] = '1'  # the processes that measure import what they need
    from bevfusion_enhanced.engine.commands.cli import run_cli
    return run_cli(lambda: run(args))


if __name__ == '__main__':
    sys.exit(main())
