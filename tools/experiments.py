"""Runs side by side: python tools/experiments.py list | show | compare | best | prune | export."""
import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional

DESCRIPTION = """What runs there are below work_dirs/, what they reached and how they differ. Read
from the runs' own folders each time: there is no index to lose."""


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument('--root', type=Path, default=Path('work_dirs'), metavar='DIR',
                        help='folder of all runs (default: %(default)s)')
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    commands = parser.add_subparsers(dest='command', required=True)
    run = dict(metavar='RUN', help='path of a run, or the end of it that tells it apart')

    commands.add_parser('list', parents=[shared], help='every run, a line each')
    show = commands.add_parser('show', parents=[shared], help='one run, whole')
    show.add_argument('run', **run)
    compare = commands.add_parser('compare', parents=[shared],
                                  help='settings on which runs differ beside their metrics')
    compare.add_argument('runs', nargs='+', **run)
    compare.add_argument('--png', type=Path, metavar='FILE', default=Path('compare.png'),
                         help='picture of the curves (default: %(default)s)')
    best = commands.add_parser('best', parents=[shared], help='the run of the highest metric')
    best.add_argument('--metric', default='NDS', help='mAP, NDS or mIoU (default: %(default)s)')
    prune = commands.add_parser('prune', parents=[shared],
                                help='delete checkpoints that no run needs any more')
    prune.add_argument('runs', nargs='*', **{**run, 'help': 'runs to prune (default: all)'})
    prune.add_argument('--keep', type=int, default=1, metavar='N',
                       help='newest checkpoints of each run to keep (default: %(default)s)')
    prune.add_argument('--yes', action='store_true', help='delete without asking')
    export = commands.add_parser('export', parents=[shared], help='the list as a file')
    export.add_argument('out', type=Path, metavar='OUT', help='a .csv or .md file')
    export.add_argument('--force', action='store_true', help='replace OUT where it exists')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, carry out the command, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.experiments import commands
    actions = {
        'list': lambda: commands.list_all(root=args.root),
        'show': lambda: commands.show(args.run, root=args.root),
        'compare': lambda: commands.compare(args.runs, root=args.root, png=args.png),
        'best': lambda: commands.best(args.metric, root=args.root),
        'prune': lambda: commands.prune(args.runs, root=args.root, keep=args.keep, yes=args.yes),
        'export': lambda: commands.export(args.out, root=args.root, force=args.force),
    }
    return run_cli(actions[args.command])


if __name__ == '__main__':
    os.environ['BEVFUSION_ENHANCED_LAZY'] = '1'  # files are looked at: spare the registration
    sys.exit(main())
