"""`metrics.jsonl`: one JSON object a line, with everything measured of a run.

    {"kind": "train", "epoch": 1, "iter": 50, "loss": ..., "loss/<task>/<name>": ..., ...}
    {"kind": "epoch", "epoch": 1, "iter": 3517, "measurements": {...}, "findings": [...]}
    {"kind": "val", "epoch": 1, "iter": 3517, "object/mAP": ..., ...}
    {"kind": "event", "epoch": 1, "iter": 77, "event": "...", ...}

Numbers that are not finite are null: JSON has no others.
"""
import json
import math
import os
from pathlib import Path
from typing import Any, Callable, Mapping, Tuple

NAME = 'metrics.jsonl'
DROPPED = 'metrics.dropped.jsonl'


class MetricsLog:
    """Appends to the file of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / NAME

    def write(self, kind: str, *, epoch: int, iteration: int, values: Mapping[str, Any],
              again: bool = False) -> None:
        """Append one line.

        Args:
            kind: of the line.
            epoch: counted from 1.
            iteration: number of iterations done.
            values: the rest of the line.
            again: in place of an earlier line of that kind and iteration, if there is one.
        """
        if again:
            self._keep(lambda line: _of(line) != (kind, iteration))
        record = dict(kind=kind, epoch=epoch, iter=iteration, **values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(_plain(record), ensure_ascii=False) + '\n')

    def cut(self, *, iteration: int) -> int:
        """Take out what lies beyond an iteration, since training from there writes it again.

        So goes a last line that a kill cut short. What is taken out is appended to
        `metrics.dropped.jsonl`. Returns how many lines that were.
        """
        return self._keep(lambda line: _of(line)[1] <= iteration)

    def _keep(self, wanted: Callable[[str], bool]) -> int:
        if not self.path.is_file():
            return 0
        lines = self.path.read_text(encoding='utf-8').splitlines()
        kept = [line for line in lines if wanted(line)]
        if len(kept) < len(lines):
            with self.path.with_name(DROPPED).open('a', encoding='utf-8') as file:
                file.writelines(f'{line}\n' for line in lines if not wanted(line))
            beside = self.path.with_name(NAME + '.part')
            beside.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')
            os.replace(beside, self.path)
        return len(lines) - len(kept)


def _of(line: str) -> Tuple[str, float]:
    """Kind and iteration of a line; infinite for one that is no whole record."""
    try:
        record = json.loads(line)
        return str(record['kind']), float(record['iter'])
    except (ValueError, KeyError, TypeError):
        return '', math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
