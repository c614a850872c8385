"""Generates a synthetic dataset in nuScenes v1.0-mini format."""
import argparse
import sys
from pathlib import Path

DESCRIPTION = """Simulate towns, traffic and sensors, and write them as a nuScenes v1.0-mini dataset
that the nuScenes devkit and MMDetection3D read like the real one. The scenes bear the official
names; a fifth of them, and at least one, is held out (mini_val) and lies in a town of its own.
The same options give the same bytes. The default of 10 scenes takes less than 90 s on two cores and
220 MB: it thins out the LiDAR to 542 columns (real: 1084), keeps the 2 sweeps before each key frame
(real: 9) and shrinks images to 400x225 (real: 1600x900)."""


def parse_arguments(arguments: list) -> argparse.Namespace:
    """The options, by the names of the parameters of `create_dataset`."""
    parser = argparse.ArgumentParser(description=DESCRIPTION,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/synthetic'),
                        help='root folder of the dataset; nothing in it is ever overwritten')
    parser.add_argument('--scenes', type=int, default=10, help='2 to 10')
    parser.add_argument('--keyframes', type=int, default=20, help='of a scene, 2 a second')
    parser.add_argument('--sweeps', type=int, default=2,
                        help='LiDAR sweeps at 20 Hz before each key frame, 0 to 9')
    parser.add_argument('--image-scale', type=float, default=0.25, help='1.0 is 1600x900')
    parser.add_argument('--lidar-columns', type=int, default=542,
                        help='azimuth steps of a LiDAR turn')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=2, help='processes')
    return parser.parse_args(arguments)


def main() -> int:
    """Generate the dataset; 2 after a user's mistake, which is told in one line."""
    arguments = parse_arguments(sys.argv[1:])
    # Imported here, so that --help answers at once.
    from bevfusion_enhanced.errors import UserError
    from bevfusion_enhanced.synthetic.dataset import create_dataset
    try:
        created = create_dataset(**vars(arguments))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{arguments.out}: {"written" if created else "already there, unchanged"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
