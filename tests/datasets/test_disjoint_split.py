"""Splits by place: training and validation lie as far apart as asked for."""
import importlib.util
import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bevfusion_enhanced.datasets.disjoint_split import (
    Track,
    disjoint_split,
    smallest_distance,
    tracks_of,
)
from bevfusion_enhanced.datasets.info_files import read_info_file
from bevfusion_enhanced.datasets.nuscenes_infos import create_infos, open_database
from bevfusion_enhanced.errors import ConfigError, DataError


def town(seed: int, scenes: int, size: float, location: str = 'a') -> dict:
    """Scenes of 40 key frames that wander along the streets of a town."""
    rng = np.random.default_rng(seed)
    tracks = {}
    for number in range(scenes):
        start, angle = rng.uniform(0, size, 2), rng.choice([0, np.pi / 2])
        steps = rng.uniform(0, 8, 40).cumsum()[:, None] * [np.cos(angle), np.sin(angle)]
        tracks[f'{location}-{number:03d}'] = Track(location, start + steps)
    return tracks


def distance_by_hand(tracks: dict, split) -> float:
    """Over all pairs of key frames, without the code under test."""
    distances = [cdist(tracks[one].positions, tracks[other].positions).min()
                 for one in split.train for other in split.val
                 if tracks[one].location == tracks[other].location]
    return min(distances, default=np.inf)


@pytest.mark.parametrize('seed, scenes, size, min_distance', [
    (0, 120, 3000, 144), (1, 120, 3000, 60), (2, 40, 1200, 144), (3, 200, 2000, 144)])
def test_training_and_validation_lie_apart(seed, scenes, size, min_distance):
    tracks = {**town(seed, scenes, size), **town(seed + 50, scenes // 2, size, 'b')}
    split = disjoint_split(tracks, min_distance=min_distance)
    assert distance_by_hand(tracks, split) >= min_distance
    assert smallest_distance(tracks, split.train, split.val) == pytest.approx(
        distance_by_hand(tracks, split))
    assert sorted(split.train + split.val + split.left_out) == sorted(tracks)
    kept = len(split.train) + len(split.val)
    assert 0.08 < len(split.val) / kept < 0.3 and kept > 0.6 * len(tracks)


def test_the_guarantee_is_not_given_by_chance():
    """The same share drawn at random lies metres apart."""
    tracks = town(0, 120, 3000)
    names = sorted(tracks)
    shuffled = np.random.default_rng(0).permutation(names).tolist()
    assert smallest_distance(tracks, shuffled[:98], shuffled[98:]) < 60


def test_the_order_of_the_scenes_does_not_matter():
    tracks = town(4, 60, 2000)
    turned = dict(reversed(list(tracks.items())))
    assert disjoint_split(tracks) == disjoint_split(turned)


def test_clusters_are_kept_whole():
    """Ten scenes on one spot, two far away: nothing has to be left out."""
    tracks = {f's{n}': Track('a', np.array([[n * 5.0, 0.0]])) for n in range(10)}
    tracks.update({f't{n}': Track('a', np.array([[5000.0 + n, 0.0]])) for n in range(2)})
    split = disjoint_split(tracks)
    assert split.val == ('t0', 't1') and split.left_out == ()


def test_locations_are_apart():
    tracks = {'one': Track('a', np.zeros((1, 2))), 'two': Track('b', np.zeros((1, 2)))}
    assert smallest_distance(tracks, ['one'], ['two']) == np.inf


def test_where_no_location_can_be_divided_one_is_the_validation():
    tracks = {f'a{n}': Track('a', np.zeros((1, 2))) for n in range(5)}
    tracks['b0'] = Track('b', np.zeros((1, 2)))
    assert disjoint_split(tracks).val == ('b0',)


def test_what_cannot_be_split():
    same = {name: Track('a', np.zeros((2, 2))) for name in 'abc'}
    with pytest.raises(DataError, match='3 scenes cannot be split 144 m apart'):
        disjoint_split(same)
    with pytest.raises(ConfigError, match='val_share'):
        disjoint_split(same, val_share=1.5)


def test_from_tables_to_info_files(mini_nuscenes, tmp_path):
    tracks = tracks_of(open_database(mini_nuscenes, 'v1.0-mini'))
    assert len(tracks) == 2 and all(track.positions.shape == (4, 2) for track in tracks.values())
    names = sorted(tracks)
    splits = tmp_path / 'splits.json'
    splits.write_text(json.dumps(dict(train=names[:1], val=names[1:], more=[])))
    written = create_infos(root_path=mini_nuscenes, version='v1.0-mini', out_dir=tmp_path,
                           info_prefix='place', splits_file=splits)
    assert {name: infos.scenes for name, infos in written.items()} == dict(train=1, val=1, more=0)
    infos = read_info_file(tmp_path / 'place_infos_val.pkl')['data_list']
    assert {info['scene_name'] for info in infos} == {names[1]}
    with pytest.raises(ConfigError, match='splits file none.json does not exist'):
        create_infos(root_path=mini_nuscenes, version='v1.0-mini', out_dir=tmp_path,
                     splits_file='none.json')


def test_the_tool(mini_nuscenes, repo, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('make_split',
                                                  repo / 'tools/make_disjoint_split.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ['--root-path', str(mini_nuscenes), '--version', 'v1.0-mini', '--val-share', '0.5',
                 '--out', str(tmp_path / 'splits.json')]
    assert tool.main(arguments) == 0  # the two scenes are in two towns
    assert 'train 1, val 1, left out 0 scenes; smallest distance inf m' in capsys.readouterr().out
    split = json.loads((tmp_path / 'splits.json').read_text())
    assert len(split['train']) == len(split['val']) == 1
    assert tool.main(arguments) == 2 and 'exists' in capsys.readouterr().err
