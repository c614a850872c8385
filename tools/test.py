"""Evaluate a checkpoint: python tools/test.py CONFIG CKPT [--show-dir DIR] [...]."""
import argparse
import sys
from typing import List, Optional


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description='Evaluate a checkpoint. The metrics are printed '
                                     'and written to <work dir>/<timestamp>/metrics.json, the '
                                     'predictions to results/ beside it.')
    parser.add_argument('config', metavar='CONFIG', help='config that the checkpoint belongs to')
    parser.add_argument('checkpoint', metavar='CKPT', help='checkpoint file')
    parser.add_argument('--work-dir', metavar='DIR',
                        help='folder of the results; by default test/ in that of the training')
    parser.add_argument('--show-dir', metavar='DIR', help='draw a few samples into this folder')
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='read the checkpoint even if it holds code; it is executed')
    parser.add_argument('--tta', action='store_true',
                        help='average over mirrored and turned views of each sample: by the '
                        "config's tta_pipeline and tta_model, or by twelve views")
    parser.add_argument('--corrupt', metavar='NAME[=LEVEL]', nargs='+', action='extend', default=[],
                        help='let something go wrong: cameras=2, cameras=CAM_FRONT+CAM_BACK, '
                        'cameras=1:removed, beams=16, beams=4, delay_points, delay_images, '
                        'calibration=DEGREES:CENTIMETRES')
    parser.add_argument('--save-masks', action='store_true',
                        help='keep every predicted map with the results, packed to bits')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                        default=[], help='change settings of the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='how several processes were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='set by torch.distributed.launch')
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, evaluate, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.engine.commands.evaluate import EvaluateOptions, evaluate
    from bevfusion_enhanced.engine.commands.train import set_local_rank
    set_local_rank(args.local_rank)
    options = EvaluateOptions(
        config=args.config, checkpoint=args.checkpoint, work_dir=args.work_dir,
        show_dir=args.show_dir, trust_checkpoint=args.trust_checkpoint, tta=args.tta,
        corrupt=args.corrupt, save_masks=args.save_masks, overrides=args.cfg_options,
        launcher=args.launcher)
    return run_cli(lambda: evaluate(options))


if __name__ == '__main__':
    sys.exit(main())
