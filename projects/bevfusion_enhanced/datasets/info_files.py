"""Info files on disk: MMDetection3D's v2 form, `{'metainfo': {...}, 'data_list': [...]}`."""
import os
import pickle
from pathlib import Path
from typing import Union

from bevfusion_enhanced.errors import DataError

RECREATE = 'create it with tools/create_data.py --root-path DATASET_ROOT --version VERSION'


def read_info_file(path: Union[str, Path]) -> dict:
    """The content of an info file.

    Raises:
        DataError: The file is missing, unreadable, or of another form.
    """
    try:
        with open(path, 'rb') as file:
            content = pickle.load(file)
    except OSError as error:
        raise DataError(f'info file {path}: {error.strerror or error}; {RECREATE}') from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError,
            ValueError) as error:
        raise DataError(f'info file {path} cannot be read ({type(error).__name__}); '
                        f'{RECREATE}') from None
    if not isinstance(content, dict) or not {'metainfo', 'data_list'} <= content.keys():
        raise DataError(f'info file {path} has no metainfo and data_list, so it is not of '
                        f"MMDetection3D's v2 form; {RECREATE}")
    return content


def write_info_file(content: dict, path: Union[str, Path]) -> None:
    """Write `content` whole or not at all: an interrupted run leaves the file of before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            pickle.dump(content, file, protocol=4)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
