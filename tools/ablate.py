"""Ablations: python tools/ablate.py configs/ablations/*.py --base CKPT --epochs N [...]."""
import argparse
import sys
from pathlib import Path
from typing import List, Optional

DESCRIPTION = """Train each config from the same checkpoint, under several seeds, test it, and write
one table: table.md, table.csv, table.png and runs.csv. Stopped or killed, the same command goes on
where it was; what is done is not done again."""


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='ablations to run')
    parser.add_argument('--base', metavar='CKPT', help='checkpoint to train from: every tensor '
                        'that fits is taken; without it, from nothing')
    parser.add_argument('--base-config', metavar='CONFIG', help='read the ablations over this '
                        'config, in place of the one they name: configs/mini/phase4a_task_gca.py '
                        'runs them at toy sizes')
    parser.add_argument('--epochs', type=int, required=True, metavar='N',
                        help='length of each training; the schedule is scaled to it')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], metavar='SEED',
                        help='each ablation is run once under each (default: 0)')
    parser.add_argument('--devices', nargs='+', metavar='DEVICE',
                        help='numbers of GPUs, or cpu (default: every GPU)')
    parser.add_argument('--jobs', type=int, metavar='N',
                        help='runs at a time (default: one a device)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/ablations'),
                        metavar='DIR', help='where runs and table go (default: %(default)s)')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                        default=[], help='change settings of every config')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, run, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.experiments.ablate import AblateOptions, ablate
    options = AblateOptions(
        configs=args.configs, tools=Path(__file__).resolve().parent, base=args.base,
        base_config=args.base_config, epochs=args.epochs, seeds=args.seeds, devices=args.devices,
        jobs=args.jobs, work_dir=args.work_dir, overrides=args.cfg_options)
    statuses: List[int] = []
    return run_cli(lambda: statuses.append(ablate(options))) or statuses[0]


if __name__ == '__main__':
    sys.exit(main())
