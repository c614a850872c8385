"""Train a config: python tools/train.py CONFIG [--load-from CKPT ...] [--resume [CKPT]] [...]."""
import argparse
import sys
from typing import TYPE_CHECKING, List, Optional

if TYPE_CHECKING:
    from bevfusion_enhanced.engine.commands.train import TrainOptions


def build_parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description="Train a model in work_dirs/, the config's path below configs/, and a tag. The "
        'same command again goes on with what is there.')
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('--extra-tag', metavar='TAG', default='default',
                        help='tells runs of one config apart; "auto" makes one of the date and '
                        'what was changed (default: %(default)s)')
    parser.add_argument('--work-dir', metavar='DIR', help='folder of the run, whatever its tag')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--load-from', '--pretrained', metavar='CKPT', nargs='+', default=[],
                       help='start a new run from every weight that fits; of several files, each '
                       'module comes from the one assigned to it (MODULE=CKPT), or the first '
                       'that holds it')
    start.add_argument('--resume', '--ckpt', metavar='CKPT', nargs='?', const='auto',
                       help='go on with a run: from its newest checkpoint, or from the one given '
                       '(the newest one, of a folder); a run whose folder is there is gone on '
                       'with anyway')
    start.add_argument('--restart', action='store_true',
                       help='begin again; the run that is there is moved aside')
    parser.add_argument('--fresh-schedule', action='store_true',
                        help='going on with a run, keep weights, moments and epoch, and start '
                        'the schedule of the config from there')
    parser.add_argument('--source-classes', metavar='LIST=A,B,...', nargs='+', action='extend',
                        default=[], help='classes of what --load-from loads, where the files do '
                        'not say (LIST is classes or map_classes)')
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='read the checkpoints named even if they hold code; it is executed')
    parser.add_argument('--deterministic', action='store_true',
                        help='two runs on one machine give the same weights, bit for bit')
    parser.add_argument('--amp', '--fp16', action='store_true',
                        help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    settings = parser.add_argument_group('settings of the config')
    settings.add_argument('--batch-size', type=int, metavar='N',
                          help='samples of one forward pass in each process')
    settings.add_argument('--accumulate', type=int, metavar='N',
                          help='forward passes that make one update')
    settings.add_argument('--workers', type=int, metavar='N',
                          help='processes that load data, for each training process')
    settings.add_argument('--epochs', type=int, metavar='N',
                          help='length of the training; schedules that end with it still do')
    settings.add_argument('--lr', type=float, metavar='RATE', help='base learning rate')
    settings.add_argument('--auto-scale-lr', action='store_true',
                          help='scale the learning rate with the batch of all processes')
    settings.add_argument('--seed', type=int, metavar='N', help='of all random numbers')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                        default=[], help='change settings of the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='how several processes were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='set by torch.distributed.launch')
    return parser


def options_of(args: argparse.Namespace) -> 'TrainOptions':
    """What was asked for, as `engine.commands.train` takes it."""
    from bevfusion_enhanced.engine.commands.train import TrainOptions, set_local_rank
    from bevfusion_enhanced.engine.configuration.settings import Settings
    set_local_rank(args.local_rank)
    settings = Settings(batch_size=args.batch_size, accumulate=args.accumulate, lr=args.lr,
                        workers=args.workers, epochs=args.epochs, seed=args.seed)
    return TrainOptions(
        config=args.config, work_dir=args.work_dir, extra_tag=args.extra_tag,
        load_from=args.load_from, source_classes=args.source_classes, resume=args.resume,
        restart=args.restart, fresh_schedule=args.fresh_schedule,
        trust_checkpoint=args.trust_checkpoint, deterministic=args.deterministic, amp=args.amp,
        auto_scale_lr=args.auto_scale_lr, settings=settings, overrides=args.cfg_options,
        launcher=args.launcher)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, train, and return the exit status."""
    args = build_parser().parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    from bevfusion_enhanced.engine.commands.train import train
    return run_cli(lambda: train(options_of(args)))


if __name__ == '__main__':
    sys.exit(main())
