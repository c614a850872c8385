"""The SHA-256 beside a checkpoint: `epoch_3.pth.sha256`, which `sha256sum -c` reads.

    <64 hexadecimal digits>  epoch_3.pth
    # parts <16 hexadecimal digits>

The second line, a comment to sha256sum, tells two kinds of mismatch apart: the file is damaged, or
it is another one, put there by a program that knows nothing of the sums. It covers the names and
sums of the parts of torch's zip file; a damaged file still names the parts it was written with.

While a file is being replaced, its sidecar holds the sums of both the old one and the new one, so
that whichever a crash leaves is known to be good.
"""
import hashlib
import re
import zipfile
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

from . import durable

SUFFIX = '.sha256'
_SUM = re.compile(r'^([0-9a-f]{64}) [ *]')
_PARTS = re.compile(r'^# parts ([0-9a-f]{16})$')
_BLOCK = 1 << 22


class Sums(NamedTuple):
    """What is known about a file: SHA-256 of all, and of its parts' names and sums (zip files)."""

    digest: str
    parts: Optional[str]


def sidecar_of(path: Path) -> Path:
    """Where the sums of `path` lie."""
    return path.with_name(path.name + SUFFIX)


def read_sums(path: Path) -> Tuple[Sums, ...]:
    """The sums beside `path`; none where there is no sidecar, or nothing of use in it."""
    try:
        lines = sidecar_of(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    found: List[Sums] = []
    for line in lines:
        digest, parts = _SUM.match(line), _PARTS.match(line)
        if digest:
            found.append(Sums(digest.group(1), None))
        elif parts and found:
            found[-1] = found[-1]._replace(parts=parts.group(1))
    return tuple(found)


def write_sums(sums: Sequence[Sums], path: Path) -> None:
    """Write the sidecar of `path`, whole or not at all.

    Raises:
        OSError: It cannot be written; the one before is untouched.
    """
    text = ''.join(f'{entry.digest}  {path.name}\n'
                   + (f'# parts {entry.parts}\n' if entry.parts else '') for entry in sums)
    durable.replace_bytes(text.encode(), sidecar_of(path))


def put_in_place(beside: Path, digest: str, path: Path) -> None:
    """Rename a finished file to `path` and leave its sums beside it.

    At every moment in between the file at `path` agrees with its sidecar, or has none:
    - a new file: first its sums, which speak of nothing yet;
    - one with sums: old and new sums, the file, the new sums alone;
    - one without (or with a sidecar of no use): the file, then its sums.

    Raises:
        OSError: The file or its sums cannot be written.
    """
    sums = Sums(digest, parts_digest(beside))
    exists, earlier = path.exists(), read_sums(path)
    if not exists:
        write_sums([sums], path)
    elif earlier:
        write_sums([*earlier, sums], path)
    durable.rename(beside, path)
    if exists:
        write_sums([sums], path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb', buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def parts_digest(path: Path) -> Optional[str]:
    """Digest of the names and stored sums of a zip file's parts; None for another kind of file."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = sorted((part.filename, part.CRC) for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError):
        return None
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
