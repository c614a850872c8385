"""Boxes to codes and back."""
import math

import pytest
import torch

from bevfusion_enhanced.models.heads.transfusion_coder import BoxCode, TransFusionBBoxCoder


def coder(**changes) -> TransFusionBBoxCoder:
    config = dict(pc_range=[-54.0, -54.0], voxel_size=[0.075, 0.075], out_size_factor=8)
    return TransFusionBBoxCoder(**{**config, **changes})


def random_boxes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(count, 9, generator=generator)
    boxes[:, :2] = 100 * boxes[:, :2] - 50
    boxes[:, 3:6] = 0.2 + 10 * boxes[:, 3:6]
    boxes[:, 6] = (2 * boxes[:, 6] - 1) * (math.pi - 1e-3)
    return boxes


def as_code(codes: torch.Tensor) -> BoxCode:
    """(P, S) to the form of a batch of one."""
    parts = codes.T[None].split([2, 1, 3, 2, 2] if codes.shape[1] == 10 else [2, 1, 3, 2], dim=1)
    return BoxCode(*parts) if len(parts) == 5 else BoxCode(*parts, vel=None)


@pytest.mark.parametrize('velocity', [True, False])
def test_there_and_back(velocity):
    boxes = random_boxes(50)[:, :9 if velocity else 7]
    tool = coder(code_size=10 if velocity else 8)
    codes = tool.encode(boxes)
    torch.testing.assert_close(as_code(codes).stack()[0], codes)
    torch.testing.assert_close(tool.decode(as_code(codes))[0], boxes, atol=1e-4, rtol=1e-5)


def test_a_code_by_hand():
    box = torch.tensor([[0.6 - 54, 1.2 - 54, -1.0, 1.0, math.e, 2.0, math.pi / 2, 3.0, 4.0]])
    expected = [1, 2, 0, 0, 1, math.log(2), 1, 0, 3, 4]
    torch.testing.assert_close(coder().encode(box), torch.tensor([expected]), atol=1e-5, rtol=0)


def test_decoding_does_not_edit_its_input():
    code = as_code(coder().encode(random_boxes(5)))
    before = [part.clone() for part in code]
    coder().decode(code)
    assert all(torch.equal(a, b) for a, b in zip(code, before))


def test_boxes_without_extent_have_finite_codes():
    box = torch.zeros(1, 9)
    assert coder().encode(box).isfinite().all()
    assert coder().encode(torch.zeros(0, 9)).shape == (0, 10)


def test_out_of_range_and_low_scores_are_unwanted():
    boxes = torch.zeros(5, 9)
    boxes[1, 0], boxes[2, 1], boxes[3, 2] = 62, -62, 11
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.1])
    both = coder(post_center_range=[-61.2, -61.2, -10, 61.2, 61.2, 10], score_threshold=0.1)
    assert both.wanted(boxes, scores).tolist() == [True, False, False, False, False]
    assert coder().wanted(boxes, scores).all()
