"""Write info files of nuScenes: python tools/create_data.py --root-path DIR --version v1.0-mini."""
import argparse
import os
import sys
from contextlib import contextmanager
from typing import Iterator, List, Optional

DESCRIPTION = """Write the info files that training and evaluation read, <prefix>_infos_<split>.pkl,
from the tables of nuScenes or of a dataset in its format (such as
tools/create_synthetic_nuscenes.py writes). They are in MMDetection3D's v2 form with the map
location and the ego poses of each key frame added; its camera-wise boxes (cam_instances), which
only monocular detectors read, are not written. With --gt-database, also the points of each
annotated object of the split train, for BEVFusionObjectSample (or MMDetection3D's ObjectSample). A
run that was stopped, however hard, goes on where it was when it is started again."""
SPLIT = 'train'
EXIT_PROBLEMS = 1


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
    parser.add_argument('--splits', metavar='FILE',
                        help='scenes of the splits, {"train": [names], "val": [names]}, in place '
                        "of the version's own; such as tools/make_disjoint_split.py writes")
    parser.add_argument('--gt-database', action='store_true',
                        help=f'also write the GT database of the split {SPLIT}: '
                        f'<prefix>_dbinfos_{SPLIT}.pkl and <prefix>_gt_database/')
    parser.add_argument('--gt-sweeps', type=int, default=9, metavar='N',
                        help='sweeps in the GT database, as many as training adds to a key frame '
                        '(default: %(default)s)')
    parser.add_argument('--verify', action='store_true',
                        help='write nothing: check the files that existing info files and GT '
                        'databases name, list missing and truncated ones with their sizes, and '
                        'answer 1 if there are any')
    parser.add_argument('--workers', type=int, default=min(8, os.cpu_count() or 1), metavar='N',
                        help='processes (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, write or verify, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    if not args.verify:
        return run_cli(lambda: create(args))
    problems: List[object] = []
    return run_cli(lambda: problems.extend(verify(args))) or (EXIT_PROBLEMS if problems else 0)


def create(args: argparse.Namespace) -> None:
    """Write the info files and the GT database, and say what was written."""
    from bevfusion_enhanced.datasets.nuscenes_infos import (
        create_infos,
        forget_scenes,
        require_split,
    )
    if args.gt_database:
        require_split(args.root_path, args.version, SPLIT, args.splits)
    written = create_infos(
        root_path=args.root_path, version=args.version, out_dir=args.out_dir,
        info_prefix=args.info_prefix, max_sweeps=args.max_sweeps, workers=args.workers,
        skip_incomplete_scenes=args.skip_incomplete_scenes, splits_file=args.splits,
        keep_scenes=args.gt_database)
    for split, infos in written.items():
        print(f'{split}: {infos.samples} key frames of {infos.scenes} scenes -> {infos.path}')
    if args.gt_database:
        create_database(args, str(written[SPLIT].path))
        forget_scenes(args.out_dir or args.root_path, args.info_prefix)


def create_database(args: argparse.Namespace, info_file: str) -> None:
    """Write the GT database and say what was written."""
    from bevfusion_enhanced.datasets.object_database_writer import create_object_database
    with mmengine_ready():
        written = create_object_database(
            root_path=args.root_path, info_file=info_file, out_dir=args.out_dir,
            info_prefix=args.info_prefix, split=SPLIT, sweeps_num=args.gt_sweeps,
            workers=args.workers)
    counts = ', '.join(f'{name} {count}' for name, count in written.objects.items())
    print(f'GT database: {counts} ({written.scenes_cut} scenes cut in this run) -> {written.path}')


def verify(args: argparse.Namespace) -> list:
    """Print what is wrong with the files on disk; returns the problems."""
    from bevfusion_enhanced.datasets.file_checks import verify_files
    with mmengine_ready():
        verified = verify_files(
            root_path=args.root_path, version=args.version, out_dir=args.out_dir,
            info_prefix=args.info_prefix, splits_file=args.splits, workers=args.workers)
    for problem in verified.problems:
        print(problem)
    print(f'{verified.files} files of {", ".join(verified.info_files)}: '
          f'{len(verified.problems) or "no"} missing or broken')
    return list(verified.problems)


@contextmanager
def mmengine_ready() -> Iterator[None]:
    """Let datasets be built, without the table that MMDetection3D logs for each."""
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope, init_default_scope
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmdet3d')
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


if __name__ == '__main__':
    sys.exit(main())
