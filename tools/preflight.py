"""Check, then train: python tools/preflight.py CONFIG [--load-from CKPT] [--yes] [...]."""
import argparse
import sys
from pathlib import Path
from typing import List, Optional

sys.path.insert(0, str(Path(__file__).parent))
import train  # noqa: E402, the command line beside this file


def build_parser() -> argparse.ArgumentParser:
    """The options of tools/train.py, and those of the checks."""
    parser = train.build_parser()
    parser.description = ('Check what a long training needs, a line each; then ask, and start it. '
                          'Takes the options of tools/train.py.')
    parser.add_argument('--yes', action='store_true', help='start without asking')
    parser.add_argument('--dry-run-iterations', type=int, default=5, metavar='N',
                        help='training iterations that are timed (default: %(default)s)')
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, check, ask, train, and return the exit status."""
    args = build_parser().parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.engine.commands.long_run import check_and_train
    return run_cli(lambda: check_and_train(
        train.options_of(args), yes=args.yes, iterations=args.dry_run_iterations))


if __name__ == '__main__':
    sys.exit(main())
