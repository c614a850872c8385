"""Peaks of the heatmap, and the order of proposals."""
import pytest
import torch
from torch.nn import functional as F

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.heads.transfusion_proposals import (
    cell_centers,
    local_maxima,
    propose,
)


@pytest.mark.parametrize('size', [1, 3, 5])
def test_peaks_are_local_maxima_except_of_spared_classes(size):
    heatmap = torch.rand(2, 10, 16, 13, generator=torch.Generator().manual_seed(0))
    scores = local_maxima(heatmap, size=size, spared=(8, 9)).reshape(2, 10, 16, 13)
    window = F.max_pool2d(heatmap, size, stride=1, padding=size // 2)
    expected = heatmap * (heatmap == window)
    border = torch.ones(16, 13, dtype=torch.bool)
    border[size // 2:16 - size // 2, size // 2:13 - size // 2] = False
    expected[:, :, border] = 0
    expected[:, 8:] = heatmap[:, 8:]
    assert torch.equal(scores, expected)


def test_proposals_are_the_highest_and_ties_go_to_the_first():
    scores = torch.zeros(1, 10, 256)
    scores[0, 3, 100:140] = 0.5
    scores[0, 1, 7] = 0.9
    labels, cells = propose(scores, count=20)
    assert labels[0].tolist() == [1] + [3] * 19
    assert cells[0].tolist() == [7] + list(range(100, 119))


def test_proposals_are_those_of_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(3, 4, 50, generator=generator) * 8).floor() / 8
    labels, cells = propose(scores, count=60)
    expected = scores.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :60]
    assert torch.equal(labels * 50 + cells, expected)


def test_more_proposals_than_cells_are_refused():
    with pytest.raises(ConfigError, match='num_proposals is 41, but the heatmap has only 40'):
        propose(torch.zeros(1, 4, 10), count=41)


def test_cell_centres_run_along_y_first():
    centers = cell_centers((3, 2))
    assert centers.tolist() == [[[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5], [2.5, 0.5],
                                 [2.5, 1.5]]]
