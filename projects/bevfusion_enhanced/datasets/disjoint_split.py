"""A split of nuScenes whose training and validation lie apart, for the map tasks.

The official split shows the same streets in training and in validation, so that a model can score
on maps by remembering them (Lilja et al., 'Localization is all you evaluate: data leakage in online
mapping datasets and how to fix it', CVPR 2024; Yuan et al., 'StreamMapNet', WACV 2024). Both papers
publish lists of their own. This one is computed from the poses of the ego, so it holds for any
dataset in this form and for any distance: no key frame of a validation scene is nearer to one of a
training scene than `min_distance`. Scenes that would be are left out.

In each location scenes are cut off by a straight line, or whole clusters are set apart, whichever
leaves fewest scenes out and comes nearest to the share asked for; where no location can be divided,
one of them is the validation. Nothing is drawn at random.

Shapes: P key frames of a scene, S scenes of a location. Global frame, metres.
"""
import math
from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np
from nuscenes import NuScenes
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from bevfusion_enhanced.errors import ConfigError, DataError

MIN_DISTANCE = 144.0
"""Two maps of 100 m by 100 m share no place, however they are turned: 100 * sqrt(2), and for each
the metre by which its centre, the LiDAR, lies ahead of the ego's origin."""
VAL_SHARE = 0.18
"""As in the official split: 150 of 850."""
_DIRECTIONS = 16


class Track(NamedTuple):
    """Where a scene was.

    Attributes:
        location: Places in different locations are apart.
        positions: (P, 2) of the ego at the key frames.
    """

    location: str
    positions: np.ndarray


class DisjointSplit(NamedTuple):
    """Scene names, in order."""

    train: Tuple[str, ...]
    val: Tuple[str, ...]
    left_out: Tuple[str, ...]


def tracks_of(database: NuScenes) -> Dict[str, Track]:
    """The track of each scene of the tables, by scene name."""
    tracks = {}
    for scene in database.scene:
        positions = []
        token = scene['first_sample_token']
        while token:
            sample = database.get('sample', token)
            lidar = database.get('sample_data', sample['data']['LIDAR_TOP'])
            positions.append(database.get('ego_pose', lidar['ego_pose_token'])['translation'][:2])
            token = sample['next']
        location = database.get('log', scene['log_token'])['location']
        tracks[scene['name']] = Track(location, np.array(positions, dtype=np.float64))
    return tracks


def disjoint_split(tracks: Mapping[str, Track], *, min_distance: float = MIN_DISTANCE,
                   val_share: float = VAL_SHARE) -> DisjointSplit:
    """Split scenes so that training and validation are at least `min_distance` apart.

    Args:
        tracks: By scene name.
        min_distance: Metres between key frames.
        val_share: Of the scenes that are not left out, as nearly as can be.

    Raises:
        ConfigError: A distance or share that is none.
        DataError: The scenes lie too close together to be split so.
    """
    if min_distance <= 0 or not 0 < val_share < 1:
        raise ConfigError(f'min_distance {min_distance} must be positive and val_share {val_share} '
                          'between 0 and 1')
    train: List[str] = []
    val: List[str] = []
    for location in sorted({track.location for track in tracks.values()}):
        names = sorted(name for name, track in tracks.items() if track.location == location)
        in_train, in_val = _split_location([tracks[name].positions for name in names],
                                           min_distance, val_share)
        train += [name for name, chosen in zip(names, in_train, strict=True) if chosen]
        val += [name for name, chosen in zip(names, in_val, strict=True) if chosen]
    locations = {tracks[name].location for name in train}
    if not val and len(locations) > 1:
        val = _whole_location(tracks, train, val_share)
        train = [name for name in train if name not in val]
    if not train or not val:
        raise DataError(f'{len(tracks)} scenes cannot be split {min_distance:g} m apart; ask for '
                        'less distance, or for more scenes')
    left_out = sorted(tracks.keys() - {*train, *val})
    return DisjointSplit(tuple(sorted(train)), tuple(sorted(val)), tuple(left_out))


def smallest_distance(tracks: Mapping[str, Track], first: Sequence[str],
                      second: Sequence[str]) -> float:
    """Metres between the nearest key frames of two sets of scenes; infinite between locations."""
    smallest = math.inf
    for location in {tracks[name].location for name in first}:
        sets = [[tracks[name].positions for name in names if tracks[name].location == location]
                for names in (first, second)]
        if all(sets):
            smallest = min(smallest, float(cdist(*map(np.concatenate, sets)).min()))
    return smallest


def _whole_location(tracks: Mapping[str, Track], names: Sequence[str],
                    val_share: float) -> List[str]:
    """The scenes of the location whose number comes nearest to the share."""
    members = {location: [name for name in names if tracks[name].location == location]
               for location in sorted({tracks[name].location for name in names})}
    return min(members.values(), key=lambda found: abs(len(found) - val_share * len(names)))


def _split_location(positions: Sequence[np.ndarray], min_distance: float,
                    val_share: float) -> Tuple[np.ndarray, np.ndarray]:
    """(S,) bool of training and of validation, of S scenes of one location."""
    close = _distances(positions) < min_distance                                        # (S, S)
    best = np.ones(len(positions), dtype=bool), np.zeros(len(positions), dtype=bool)
    best_cost = val_share * len(positions)  # of no validation at all
    for val in _candidates(positions, close, val_share):
        train = ~close[:, val].any(axis=1)
        kept = train.sum() + val.sum()
        cost = len(positions) - kept + abs(val.sum() - val_share * kept)
        if train.any() and cost < best_cost - 1e-9:
            best, best_cost = (train, val), cost
    return best


def _candidates(positions: Sequence[np.ndarray], close: np.ndarray,
                val_share: float) -> Iterator[np.ndarray]:
    """(S,) bool each: sets of scenes that could be the validation."""
    count, cluster = connected_components(close, directed=False)
    sizes = np.bincount(cluster, minlength=count)
    chosen = np.zeros(len(positions), dtype=bool)
    for index in np.argsort(-sizes, kind='stable'):  # whole clusters, the large ones first
        if chosen.sum() + sizes[index] <= math.ceil(val_share * len(positions)):
            chosen = chosen | (cluster == index)
            yield chosen
    centers = np.array([track.mean(axis=0) for track in positions])                    # (S, 2)
    for number in range(_DIRECTIONS):  # what lies beyond a line
        angle = 2 * np.pi * number / _DIRECTIONS
        order = np.argsort(centers @ [np.cos(angle), np.sin(angle)], kind='stable')
        for size in range(1, max(2, math.ceil(2 * val_share * len(positions)))):
            val = np.zeros(len(positions), dtype=bool)
            val[order[:size]] = True
            yield val


def _distances(positions: Sequence[np.ndarray]) -> np.ndarray:
    """(S, S) metres between the nearest key frames of each two scenes."""
    everything = np.concatenate(positions)
    starts = np.cumsum([0, *(len(track) for track in positions[:-1])])
    return np.stack([np.minimum.reduceat(cdist(track, everything).min(axis=0), starts)
                     for track in positions])
