"""Phase 4a from phase 3: python tools/phase4a_task_gca.py CKPT [options of tools/preflight.py]."""
import sys
from pathlib import Path
from typing import List, Optional

sys.path.insert(0, str(Path(__file__).parent))
import preflight  # noqa: E402, the command line beside this file

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'phase4a_task_gca.py'
USAGE = 'usage: phase4a_task_gca.py CKPT [options of tools/preflight.py]'


def main(argv: Optional[List[str]] = None) -> int:
    """Start phase 4a from a checkpoint, after the checks; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0].startswith('-'):
        print(USAGE, file=sys.stderr)
        return 0 if arguments[:1] in (['-h'], ['--help']) else 2
    checkpoint, *options = arguments
    return preflight.main([str(CONFIG), *options, '--load-from', checkpoint])


if __name__ == '__main__':
    sys.exit(main())
