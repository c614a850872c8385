"""Split scenes by place: python tools/make_disjoint_split.py --root-path DIR --out FILE."""
import argparse
import json
import sys
from pathlib import Path
from typing import List, Optional

DESCRIPTION = """Write a split of nuScenes, or of a dataset in its format, whose training and
validation scenes lie apart, for the map tasks: the official split shows the same streets in both.
Scenes in between are left out. The same tables give the same split. To use it:
tools/create_data.py --splits FILE --info-prefix NAME, and train on NAME's info files."""


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument('--root-path', required=True, metavar='DIR', help='root of the dataset')
    parser.add_argument('--version', default='v1.0-trainval',
                        help='folder of the tables (default: %(default)s)')
    parser.add_argument('--out', required=True, metavar='FILE',
                        help='where to write {"train": [scene names], "val": [...]}')
    parser.add_argument('--min-distance', type=float, default=144.0, metavar='M',
                        help='metres between any two key frames of training and validation '
                        '(default: %(default)s: maps of 100 m by 100 m share no place)')
    parser.add_argument('--val-share', type=float, default=0.18, metavar='SHARE',
                        help='share of the validation (default: %(default)s, the official one)')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, write the split, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    return run_cli(lambda: make(args))


def make(args: argparse.Namespace) -> None:
    """Write the split and say what it is."""
    from bevfusion_enhanced.datasets.disjoint_split import (
        disjoint_split,
        smallest_distance,
        tracks_of,
    )
    from bevfusion_enhanced.datasets.nuscenes_infos import open_database
    from bevfusion_enhanced.errors import ConfigError
    out = Path(args.out)
    if out.exists():
        raise ConfigError(f'{out} exists; remove it, or give another --out')
    tracks = tracks_of(open_database(Path(args.root_path), args.version))
    split = disjoint_split(tracks, min_distance=args.min_distance, val_share=args.val_share)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dict(train=split.train, val=split.val), indent=1) + '\n')
    distance = smallest_distance(tracks, split.train, split.val)
    print(f'train {len(split.train)}, val {len(split.val)}, left out {len(split.left_out)} scenes; '
          f'smallest distance {distance:.1f} m -> {out}')


if __name__ == '__main__':
    sys.exit(main())
