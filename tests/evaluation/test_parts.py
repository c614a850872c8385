"""Results by distance and by kind of scene, and what is kept of them."""
import json

import numpy as np
import pytest
import torch

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.evaluation.bev_map_iou_metric import BEVMapIoUMetric
from bevfusion_enhanced.evaluation.map_counts import count_cells, counts_of, iou_from_counts
from bevfusion_enhanced.evaluation.map_results import (
    load_map_results,
    load_masks,
    map_metrics,
    save_map_results,
    with_rings,
)
from bevfusion_enhanced.evaluation.protocol import differences, map_protocol
from bevfusion_enhanced.evaluation.rings import DEFAULT_RINGS, check_rings, rings_of_cells
from bevfusion_enhanced.evaluation.scene_kinds import scene_kinds

CLASSES = ['drivable_area', 'divider']
GRID = dict(classes=CLASSES, xbound=[-50.0, 50.0, 5.0], ybound=[-50.0, 50.0, 5.0], raster='devkit')
DESCRIPTIONS = ('Day, parked cars', 'Night, rain', 'Rain, turn left', 'Night')


def random_samples(count: int = 4, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [dict(token=f't{number}', scene_description=DESCRIPTIONS[number % 4], map_grid=GRID,
                 pred_bev_map=dict(probs=torch.from_numpy(rng.random((2, 20, 20))).float()),
                 gt_bev_map=dict(masks=torch.from_numpy(rng.integers(0, 2, (2, 20, 20)))))
            for number in range(count)]


def score(samples, folder=None, **settings) -> dict:
    metric = BEVMapIoUMetric(results_dir=folder and str(folder), **settings)
    metric.dataset_meta = dict(map_classes=CLASSES, version='v1.0-mini', split='val.pkl')
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def iou_by_hand(samples, where: np.ndarray, column: int, threshold: float) -> float:
    """A loop over cells."""
    both = only = missed = 0
    for sample in samples:
        for i, j in zip(*np.nonzero(where), strict=True):
            predicted = float(sample['pred_bev_map']['probs'][column, i, j]) >= threshold
            true = bool(sample['gt_bev_map']['masks'][column, i, j])
            both, only, missed = (both + (predicted and true), only + (predicted and not true),
                                  missed + (true and not predicted))
    return both / (both + only + missed)


def distances() -> np.ndarray:
    axis = np.arange(-47.5, 50, 5)
    return np.sqrt(axis[:, None] ** 2 + axis[None] ** 2)


def test_rings_match_a_loop_over_cells():
    samples, gap = random_samples(), distances()
    values = score(samples)
    for near, far in DEFAULT_RINGS:
        where = (gap >= near) & (gap < far)
        for column, name in enumerate(CLASSES):
            assert values[f'map/{near}-{far}m/{name}/iou@0.50'] == pytest.approx(
                iou_by_hand(samples, where, column, 0.5), abs=1e-6)
    best = [max(iou_by_hand(samples, gap < 15, 1, t) for t in np.arange(0.35, 0.66, 0.05))]
    assert values['map/0-15m/divider/iou@max'] == pytest.approx(best[0], abs=1e-6)
    assert values['map/divider/iou@0.50'] == pytest.approx(
        iou_by_hand(samples, gap < 100, 1, 0.5), abs=1e-6)


def test_what_is_farther_than_every_ring_counts_in_the_whole_only():
    near, far = random_samples(1)[0], distances() >= 50
    with_corner = {**near, 'pred_bev_map': dict(probs=near['pred_bev_map']['probs'].clone())}
    with_corner['pred_bev_map']['probs'][:, far] = 1 - near['gt_bev_map']['masks'][:, far].float()
    one, other = score([near]), score([with_corner])
    assert far.sum() > 20
    assert one['map/mean/iou@0.50'] != other['map/mean/iou@0.50']
    assert all(one[key] == other[key] for key in one if 'm/' in key.split('map/')[1][:8]
               and not key.startswith('map/mean'))


def test_scenes_by_their_description():
    samples = random_samples(8)
    values = score(samples)
    everywhere = np.ones((20, 20), dtype=bool)
    members = dict(day=(0, 2, 4, 6), night=(1, 3, 5, 7), rain=(1, 2, 5, 6))
    for kind, indices in members.items():
        expected = iou_by_hand([samples[index] for index in indices], everywhere, 0, 0.5)
        assert values[f'map/{kind}/drivable_area/iou@0.50'] == pytest.approx(expected, abs=1e-6)
    assert not any('/night/' in key for key in score(samples, by_scene=False))
    assert not any('/rain/' in key for key in score([samples[0]]))


@pytest.mark.parametrize('description, kinds', [
    ('Night, heavy rain, parked cars', ('night', 'rain')), ('Rainy, bus', ('day', 'rain')),
    ('Nighttime', ('night',)), ('Wait for a train, brain surgery', ('day',)),
    ('After rain, overtake', ('day', 'rain')), ('', ()), (None, ())])
def test_kinds_of_scenes(description, kinds):
    assert scene_kinds(description) == kinds


def test_a_class_that_a_part_lacks_is_left_out_of_it():
    samples = random_samples(1)
    samples[0]['gt_bev_map']['masks'][1][torch.from_numpy(distances() < 15)] = 0
    values = score(samples)
    assert 'map/0-15m/divider/iou@0.50' not in values
    assert values['map/0-15m/mean/iou@0.50'] == values['map/0-15m/drivable_area/iou@0.50']
    assert 'map/15-30m/divider/iou@0.50' in values


def test_samples_are_counted_once():
    samples = random_samples(3)
    once, twice = score(samples), score([*samples, samples[0], samples[2]])
    assert once == twice
    counted_twice = {**samples[0], 'token': 'another'}
    assert score([*samples, counted_twice]) != once


def test_a_class_order_that_the_truth_does_not_have():
    with pytest.raises(ConfigError, match='same classes in the same order'):
        score(random_samples(1), classes=CLASSES[::-1])


def test_what_is_kept_gives_the_same_metrics(tmp_path):
    samples = random_samples(8)
    values = score(samples, tmp_path)
    kept = load_map_results(tmp_path / 'map_results.npz')
    assert {f'map/{key}': value for key, value in map_metrics(kept).items()} == values
    assert kept.protocol['samples'] == 8 and kept.protocol['raster'] == 'devkit'
    assert kept.protocol['xbound'] == [-50, 50, 5] and kept.protocol['split'] == 'val.pkl'
    assert (tmp_path / 'map_results.npz').stat().st_size < 20_000
    assert not (tmp_path / 'map_masks').exists()


@pytest.mark.parametrize('thresholds', [(0.5,), (0.35, 0.5, 0.65), tuple(np.arange(1, 16) / 16)])
def test_masks_come_back_bit_for_bit(tmp_path, thresholds):
    sample = random_samples(1)[0]
    score([sample], tmp_path, save_masks=True, thresholds=thresholds)
    levels, masks = load_masks(tmp_path, 't0')
    assert torch.equal(masks, sample['gt_bev_map']['masks'].long())
    for index, threshold in enumerate(thresholds):
        assert torch.equal(levels > index, sample['pred_bev_map']['probs'] >= threshold)


def test_other_rings_are_counted_from_masks(tmp_path):
    samples = random_samples(3)
    score(samples, tmp_path, save_masks=True)
    other = [(0, 20), (20, 40)]
    again = map_metrics(with_rings(load_map_results(tmp_path / 'map_results.npz'), other, tmp_path))
    assert {f'map/{key}': value for key, value in again.items()} == score(samples, rings=other)
    score(samples, tmp_path / 'counts')
    kept = load_map_results(tmp_path / 'counts' / 'map_results.npz')
    assert with_rings(kept, DEFAULT_RINGS, tmp_path / 'counts') is kept
    with pytest.raises(DataError, match='test again with --save-masks'):
        with_rings(kept, other, tmp_path / 'counts')


def test_broken_files_are_one_line(tmp_path):
    samples = random_samples(1)
    score(samples, tmp_path)
    path = tmp_path / 'map_results.npz'
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match='cannot be read'):
        load_map_results(path)
    with pytest.raises(DataError, match='No such file'):
        load_map_results(tmp_path / 'none.npz')
    np.savez(path, tokens=np.array([{}], dtype=object))
    with pytest.raises(DataError, match='cannot be read'):
        load_map_results(path)


def test_rings_of_cells_by_hand():
    index = rings_of_cells([(0, 2), (2, 3)], xbound=[-2.0, 2.0, 1.0], ybound=[0.0, 3.0, 1.0])
    # centres: x -1.5 -.5 .5 1.5, y .5 1.5 2.5
    assert index.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]]
    outside = rings_of_cells([(1, 2)], xbound=[-2.0, 2.0, 1.0], ybound=[0.0, 3.0, 1.0])
    assert outside[1].tolist() == [1, 0, 1]


@pytest.mark.parametrize('rings', [[(0, 0)], [(-1, 2)], [(0, 5), (4, 9)], [(5, 9), (0, 5)], [(1,)]])
def test_rings_that_are_none(rings):
    with pytest.raises(ConfigError, match='rings'):
        check_rings(rings)


def test_not_a_number_is_not_predicted():
    probs = torch.tensor([[[float('nan'), 0.6]]])
    counts = count_cells(probs, torch.ones(1, 1, 2), (0.5,))
    assert counts.tolist() == [[[1, 0, 1]]]


def test_thresholds_are_met_exactly():
    thresholds = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
    probs = torch.tensor(thresholds)[None, None]
    counts = count_cells(probs, torch.ones(1, 1, 7), thresholds)
    assert counts[:, 0, 0].tolist() == [7, 6, 5, 4, 3, 2, 1]


def test_iou_of_histograms_is_that_of_counts():
    rng = np.random.default_rng(0)
    histograms = rng.integers(0, 9, (5, 2, 3, 2, 4)).astype(np.int32)
    np.testing.assert_array_equal(counts_of(histograms).sum(axis=0),
                                  counts_of(histograms.sum(axis=0)))
    assert iou_from_counts(counts_of(histograms)).shape == (5, 2, 3, 3)


def protocol(**changes) -> dict:
    settings = dict(classes=CLASSES, thresholds=(0.5,), rings=DEFAULT_RINGS, grid=GRID,
                    tokens=['a', 'b'], version='v1.0-mini', split='val.pkl')
    return map_protocol(**{**settings, **changes})


@pytest.mark.parametrize('changes, says', [
    (dict(thresholds=(0.4,)), 'thresholds: saved [0.5], asked [0.4]'),
    (dict(grid={**GRID, 'xbound': [-30.0, 30.0, 0.5]}), 'xbound'),
    (dict(grid={**GRID, 'raster': 'cell_center'}), 'raster: saved devkit, asked cell_center'),
    (dict(classes=CLASSES[::-1]), 'classes'),
    (dict(tokens=['a', 'c']), 'samples: saved 2 of val.pkl, asked 2 of val.pkl, not the same ones'),
    (dict(version='v1.0-trainval'), 'version'), (dict(rings=[(0, 20)]), 'rings')])
def test_protocols_that_differ(changes, says):
    lines = differences(protocol(), protocol(**changes))
    assert len(lines) == 1 and lines[0].startswith(says)


def test_protocols_that_agree():
    kept = json.loads(json.dumps(protocol()))
    assert differences(kept, protocol(tokens=['b', 'a'], split='renamed.pkl')) == []
    assert differences(kept, protocol(grid=dict(xbound=None))) == []  # unknown there


def test_results_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    score(random_samples(1), tmp_path)
    before = (tmp_path / 'map_results.npz').read_bytes()
    kept = load_map_results(tmp_path / 'map_results.npz')

    def broken(file, **arrays) -> None:
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(np, 'savez_compressed', broken)
    with pytest.raises(OSError, match='disk full'):
        save_map_results(kept, tmp_path)
    assert (tmp_path / 'map_results.npz').read_bytes() == before
