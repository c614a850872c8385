"""What HealthHook costs in the training of a config: python tools/benchmark_health.py CONFIG."""
import argparse
import sys
from typing import List, Optional


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description='Train a few steps and print what HealthHook adds '
                                     'to one, part by part, at its default settings.')
    parser.add_argument('config', metavar='CONFIG', help='config, with its data in place')
    parser.add_argument('--iterations', metavar='N', type=int, default=40,
                        help='steps that are timed (40)')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                        default=[], help='change settings of the config')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, train, print, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.engine.commands.health_benchmark import benchmark
    from bevfusion_enhanced.engine.configuration.config import load_config

    def run() -> None:
        config = load_config(args.config, args.cfg_options)
        print(benchmark(config, iterations=args.iterations).table())

    return run_cli(run)


if __name__ == '__main__':
    sys.exit(main())
