"""Which scene and place a sample belongs to, from nuScenes' tables.

For info files that do not say it, such as those of MMDetection3D's own script. Reads three small
tables instead of the whole database.
"""
import json
from pathlib import Path
from typing import Dict, List, Union

from bevfusion_enhanced.errors import DataError


def read_table(data_root: Union[str, Path], version: str, name: str) -> List[dict]:
    """The records of one table.

    Raises:
        DataError: The table is missing or broken.
    """
    path = Path(data_root) / version / f'{name}.json'
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f'cannot read table {path}: {error.strerror or error}') from None
    except ValueError as error:
        raise DataError(f'table {path} is no JSON: {error}; fetch it again') from None


def scenes_of_samples(data_root: Union[str, Path], version: str) -> Dict[str, dict]:
    """For each sample token: location, scene_token, scene_name, scene_description, prev and next.

    Raises:
        DataError: A table is missing, broken, or refers to a record that is not there.
    """
    logs = {log['token']: log for log in read_table(data_root, version, 'log')}
    scenes = {scene['token']: scene for scene in read_table(data_root, version, 'scene')}
    try:
        return {sample['token']: dict(
            location=logs[scenes[sample['scene_token']]['log_token']]['location'],
            scene_token=sample['scene_token'], scene_name=scenes[sample['scene_token']]['name'],
            scene_description=scenes[sample['scene_token']]['description'],
            prev=sample['prev'], next=sample['next'])
            for sample in read_table(data_root, version, 'sample')}
    except KeyError as error:
        folder = Path(data_root) / version
        raise DataError(f'tables in {folder}: no record or field {error}') from None
