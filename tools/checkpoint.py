"""Look at checkpoints and change them: python tools/checkpoint.py COMMAND ..., see --help."""
import argparse
import os
import sys
from typing import List, Optional

DESCRIPTION = """Checkpoints of this project, of the original BEVFusion and of MMDetection3D: what
is in them, what differs, what a config would load. Nothing in a file is executed."""


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported for it."""
    reads = argparse.ArgumentParser(add_help=False)
    reads.add_argument('--trust-checkpoint', action='store_true',
                       help='execute what the files ask for: for files of your own alone')
    writes = argparse.ArgumentParser(add_help=False)
    writes.add_argument('--force', action='store_true', help='replace OUT where it exists')
    overrides = argparse.ArgumentParser(add_help=False)
    overrides.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                           default=[], help='change settings of the config')
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    commands = parser.add_subparsers(dest='command', required=True)

    inspect = commands.add_parser('inspect', parents=[reads], help='what is in a checkpoint')
    inspect.add_argument('file', metavar='FILE')
    diff = commands.add_parser('diff', parents=[reads],
                               help='names, shapes and values that differ between two')
    diff.add_argument('first', metavar='A')
    diff.add_argument('second', metavar='B')
    check = commands.add_parser('check', parents=[reads, overrides],
                                help='what a config would load, without training')
    check.add_argument('file', metavar='FILE', nargs='+',
                       help='as for --load-from: FILE, or MODULE=FILE, in order of preference')
    check.add_argument('--config', metavar='C', required=True)
    check.add_argument('--source-classes', metavar='LIST=A,B,...', nargs='+', action='extend',
                       default=[], help='classes of the checkpoint, where it does not say them: '
                       'classes=car,truck map_classes=divider')
    check.add_argument('--strict', action='store_true',
                       help='exit with 1 if anything would be fresh')
    convert = commands.add_parser('convert', parents=[reads, writes, overrides],
                                  help='the same weights for another code base')
    convert.add_argument('file', metavar='IN')
    convert.add_argument('out', metavar='OUT', help='a .pth or .safetensors file')
    convert.add_argument('--to', required=True, choices=['native', 'mit', 'mmdet3d'])
    convert.add_argument('--config', metavar='C',
                         help='whose geometry counts, where IN does not say its own')
    average = commands.add_parser('average', parents=[reads, writes],
                                  help='the mean of several checkpoints of one model')
    average.add_argument('file', metavar='FILE', nargs='+')
    average.add_argument('--out', metavar='OUT', required=True)
    explain = commands.add_parser('explain', parents=[reads], help='what differs between two '
                                  'configs or checkpoints, and what follows from it')
    explain.add_argument('first', metavar='A')
    explain.add_argument('second', metavar='B')
    prune = commands.add_parser('prune', help='delete checkpoints of a run that are not needed')
    prune.add_argument('folder', metavar='FOLDER')
    prune.add_argument('--keep', type=int, default=1, metavar='N',
                       help='newest checkpoints to keep (default: %(default)s)')
    prune.add_argument('--yes', action='store_true', help='delete without asking')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns its exit status."""
    from bevfusion_enhanced.engine.commands import checkpoint_tool as tool
    if getattr(args, 'trust_checkpoint', False):
        from bevfusion_enhanced.checkpoints.trust import trust_files
        trust_files(files_of(args))
    if args.command == 'inspect':
        return tool.inspect(args.file)
    if args.command == 'diff':
        return tool.diff(args.first, args.second)
    if args.command == 'check':
        return tool.check(args.file, args.config, overrides=args.cfg_options,
                          source_classes=args.source_classes, strict=args.strict)
    if args.command == 'convert':
        return tool.convert(args.file, args.out, to=args.to, config_path=args.config,
                            overrides=args.cfg_options, force=args.force)
    if args.command == 'average':
        return tool.average(args.file, args.out, force=args.force)
    if args.command == 'explain':
        return tool.explain(args.first, args.second)
    return tool.prune(args.folder, keep=args.keep, yes=args.yes)


def files_of(args: argparse.Namespace) -> List[str]:
    """The files that a command names, which are the ones to trust."""
    if args.command in ('diff', 'explain'):
        return [args.first, args.second]
    if args.command == 'check':
        from bevfusion_enhanced.checkpoints.loading import parse_sources
        return [source.path for source in parse_sources(args.file)]
    return [args.file] if isinstance(args.file, str) else list(args.file)


def main(argv: Optional[List[str]] = None) -> int:
    """Parse, carry out the command, and return the exit status."""
    args = parse_args(argv)
    from bevfusion_enhanced.engine.commands.cli import run_cli
    outcome: List[int] = []
    return run_cli(lambda: outcome.append(run(args))) or outcome[0]


if __name__ == '__main__':
    os.environ['BEVFUSION_ENHANCED_LAZY'] = '1'  # files are looked at: spare the registration
    sys.exit(main())
