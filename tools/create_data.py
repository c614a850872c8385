"""Write info files of nuScenes: python tools/create_data.py --root-path DIR --version v1.0-mini."""
import argparse
import os
import sys
from typing import List, Optional

DESCRIPTION = """Write the info files that training and evaluation read, <prefix>_infos_<split>.pkl,
from the tables of nuScenes or of a dataset in its format (such as
tools/create_synthetic_nuscenes.py writes). They are in MMDetection3D's v2 form with the map
location of each key frame added."""


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument('--root-path', required=True, metavar='DIR',
                        help='root of the dataset: holds samples/, sweeps/, maps/ and the tables')
    parser.add_argument('--version', default='v1.0-trainval',
                        help='folder of the tables: v1.0-mini, v1.0-trainval, v1.0-test, or '
                        'another one with a splits.json (default: %(default)s)')
    parser.add_argument('--out-dir', metavar='DIR', help='where to write (default: the root)')
    parser.add_argument('--info-prefix', default='nuscenes', metavar='NAME',
                        help="start of the files' names (default: %(default)s)")
    parser.add_argument('--max-sweeps', type=int, default=10, metavar='N',
                        help='LiDAR sweeps listed for a key frame at most (default: %(default)s)')
    parser.add_argument('--skip-incomplete-scenes', action='store_true',
                        help='leave out scenes with missing sensor files instead of stopping')
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count() or 1), metavar='N',
                        help='processes (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, write the info files, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.cli import run_cli
    return run_cli(lambda: create(args))


def create(args: argparse.Namespace) -> None:
    """Write the info files and say what was written."""
    from bevfusion_enhanced.datasets.nuscenes_infos import create_infos
    written = create_infos(
        root_path=args.root_path, version=args.version, out_dir=args.out_dir,
        info_prefix=args.info_prefix, max_sweeps=args.max_sweeps, workers=args.workers,
        skip_incomplete_scenes=args.skip_incomplete_scenes)
    for split, infos in written.items():
        print(f'{split}: {infos.samples} key frames of {infos.scenes} scenes -> {infos.path}')


if __name__ == '__main__':
    sys.exit(main())
