"""Score kept results again: python tools/eval_saved.py CONFIG|none RESULT [--rings 0,20,40]."""
import argparse
import sys
from typing import List, Optional, Tuple

DESCRIPTION = """Score results that tools/test.py kept, without the model: boxes from the official
submission (results_nusc.json, also one made elsewhere), maps from the counts of their cells
(map_results.npz). The rules are those saved with the result. A config has to agree with them:
where thresholds, range, resolution, classes or samples differ, nothing is scored."""


def rings(text: str) -> List[Tuple[float, float]]:
    """'0,15,30' as [(0, 15), (15, 30)]."""
    edges = [float(edge) for edge in text.split(',')]
    if len(edges) < 2 or edges != sorted(set(edges)):
        raise argparse.ArgumentTypeError(f'{text}: expected distances that grow, such as 0,20,40')
    return list(zip(edges[:-1], edges[1:]))


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument('config', metavar='CONFIG|none',
                        help='config whose test the result has to agree with, or none')
    parser.add_argument('result', metavar='RESULT',
                        help='results_nusc.json, map_results.npz, or the folder of both')
    parser.add_argument('--data-root', metavar='DIR',
                        help='root of the dataset, if it is no longer where it was')
    parser.add_argument('--version', help='of the dataset, for a submission made elsewhere')
    parser.add_argument('--rings', type=rings, metavar='M,M,...',
                        help='edges of other rings of distance, metres; maps need their masks '
                        'for it (tools/test.py --save-masks)')
    parser.add_argument('--anyway', action='store_true',
                        help='score by the saved rules where those of the config are others')
    parser.add_argument('--out', metavar='FILE', help='write the metrics to this JSON file')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                        default=[], help='change settings of the config')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, evaluate, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.engine.commands.eval_saved import EvalSavedOptions, eval_saved
    options = EvalSavedOptions(
        config=args.config, result=args.result, data_root=args.data_root, version=args.version,
        rings=args.rings, anyway=args.anyway, out=args.out, overrides=args.cfg_options)
    return run_cli(lambda: eval_saved(options))


if __name__ == '__main__':
    sys.exit(main())
