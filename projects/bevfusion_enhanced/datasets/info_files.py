"""Info files on disk: MMDetection3D's v2 form, `{'metainfo': {...}, 'data_list': [...]}`."""
import gc
import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Union

from bevfusion_enhanced.errors import DataError

RECREATE = 'create it with tools/create_data.py --root-path DATASET_ROOT --version VERSION'


def read_info_file(path: Union[str, Path]) -> dict:
    """The content of an info file.

    Raises:
        DataError: The file is missing, unreadable, or of another form.
    """
    content = read_pickle(path, what='info file', recreate=RECREATE)
    if not isinstance(content, dict) or not {'metainfo', 'data_list'} <= content.keys():
        raise DataError(f'info file {path} has no metainfo and data_list, so it is not of '
                        f"MMDetection3D's v2 form; {RECREATE}")
    return content


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Leave Python's search for cyclic garbage out of a block that makes many objects.

    The search looks at all objects again and again as their number grows: with it, to read 100,000
    samples takes more than ten times as long as 10,000.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_pickle(path: Union[str, Path], *, what: str = 'file', recreate: str = RECREATE) -> Any:
    """The content of a pickled file.

    Args:
        path: The file.
        what: What a message calls it.
        recreate: What a message tells to do.

    Raises:
        DataError: The file is missing or unreadable.
    """
    try:
        with open(path, 'rb') as file:
            return pickle.load(file)
    except OSError as error:
        raise DataError(f'{what} {path}: {error.strerror or error}; {recreate}') from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError,
            ValueError) as error:
        raise DataError(f'{what} {path} cannot be read ({type(error).__name__}); '
                        f'{recreate}') from None


def write_pickle(content: Any, path: Union[str, Path]) -> None:
    """Write `content` whole or not at all: an interrupted run leaves the file of before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            pickle.dump(content, file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_info_file(content: dict, path: Union[str, Path]) -> None:
    """Write an info file whole or not at all."""
    write_pickle(content, path)
