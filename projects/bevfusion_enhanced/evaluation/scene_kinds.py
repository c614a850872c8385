"""Day, night and rain, from nuScenes' descriptions of scenes.

A description is a list of words, such as 'Night, heavy rain, parked cars'. A scene is of night
where a word begins with 'night', of day where none does, and of rain, besides, where one begins
with 'rain'. 'After rain' counts as rain: the street is wet.
"""
import re
from typing import Optional, Tuple

SCENE_KINDS = ('day', 'night', 'rain')


def scene_kinds(description: Optional[str]) -> Tuple[str, ...]:
    """Of which kinds a scene is; of none where nothing is known of it."""
    if not description:
        return ()
    kinds = ['night' if re.search(r'\bnight', description, re.IGNORECASE) else 'day']
    if re.search(r'\brain', description, re.IGNORECASE):
        kinds.append('rain')
    return tuple(kinds)
