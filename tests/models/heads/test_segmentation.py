"""The original map head: its size, resampling, and what it refuses."""

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import PixelData

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.heads.bev_map import BEVGridTransform
from bevfusion_enhanced.models.heads.segmentation import BEVSegmentationHead

CLASSES = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider']
TOY = dict(input_scope=[[-8, 8, 1], [-8, 8, 1]], output_scope=[[-6, 6, 1], [-4, 4, 1]])


def map_sample(masks) -> Det3DDataSample:
    sample = Det3DDataSample(metainfo=dict(token='abc'))
    sample.gt_bev_map = PixelData(masks=torch.as_tensor(masks))
    return sample


def toy_head(**changes) -> BEVSegmentationHead:
    config = dict(in_channels=4, classes=CLASSES[:3], grid_transform=TOY)
    return BEVSegmentationHead(**{**config, **changes})


def test_size_at_full_width():
    head = toy_head(in_channels=512, classes=CLASSES)
    assert sum(p.numel() for p in head.parameters()) == 4_723_718


def test_resampling_reads_a_linear_field_at_the_cell_centres():
    x = (torch.arange(16) + 0.5) * 1.0 - 8
    y = (torch.arange(20) + 0.5) * 0.5 - 5
    field = (3 * x[:, None] + 7 * y[None])[None, None].float()
    transform = BEVGridTransform(input_scope=[(-8, 8, 1.0), (-5, 5, 0.5)],
                                 output_scope=[(-7, 7, 0.4), (-4, 3.5, 0.3)])
    u = (torch.arange(35) + 0.5) * 0.4 - 7
    v = (torch.arange(25) + 0.5) * 0.3 - 4
    assert transform.output_size == (35, 25)
    torch.testing.assert_close(transform(field)[0, 0], 3 * u[:, None] + 7 * v[None],
                               atol=1e-4, rtol=1e-4)


def test_resampling_to_the_same_grid_changes_nothing_and_outside_is_zero():
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    same = BEVGridTransform(input_scope=[(-4, 4, 1), (-3, 3, 1)],
                            output_scope=[(-4, 4, 1), (-3, 3, 1)])
    torch.testing.assert_close(same(x), x, atol=1e-5, rtol=1e-5)
    wider = BEVGridTransform(input_scope=[(-4, 4, 1), (-3, 3, 1)],
                             output_scope=[(-6, 6, 1), (-3, 3, 1)])(x)
    torch.testing.assert_close(wider[:, :, 2:10], x, atol=1e-5, rtol=1e-5)
    assert (wider[:, :, :2] == 0).all() and (wider[:, :, 10:] == 0).all()


def test_resampling_follows_maps_of_changing_shape_and_serves_training_after_a_prediction():
    transform = BEVGridTransform(**TOY)
    for shape in [(1, 2, 16, 16), (2, 3, 16, 16), (2, 3, 20, 12), (1, 2, 16, 16)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            predicted = transform(x)
        x.requires_grad_()
        out = transform(x)
        expected = torch.nn.functional.grid_sample(
            x, transform.grid.expand(len(x), -1, -1, -1), align_corners=False)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(out, predicted)
        out.sum().backward()
    assert not transform.state_dict()


def test_prescale_keeps_a_constant():
    transform = BEVGridTransform(**TOY, prescale_factor=2)
    torch.testing.assert_close(transform(torch.full((1, 2, 16, 16), 3.0)),
                               torch.full((1, 2, 12, 8), 3.0))


def test_samples_of_a_batch_do_not_meet_in_evaluation():
    torch.manual_seed(0)
    head = toy_head().eval()
    bev = torch.randn(3, 4, 16, 16)
    assert head(bev).shape == (3, 3, 12, 8)
    torch.testing.assert_close(head(bev), torch.cat([head(b[None]) for b in bev]))
    predictions = head.predict(bev, [Det3DDataSample() for _ in range(3)])
    assert [p['pred_bev_map'].probs.shape for p in predictions] == [(3, 12, 8)] * 3
    assert all(0 <= p['pred_bev_map'].probs.min() <= p['pred_bev_map'].probs.max() <= 1
               for p in predictions)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(loss='dice'), "'focal' or 'xent', got 'dice'"),
    (dict(classes=[]), 'given and distinct'),
    (dict(classes=['a', 'a']), 'given and distinct'),
    (dict(grid_transform=dict(TOY, output_scope=[[-6, 6, 5], [-4, 4, 1]])), 'whole number of s'),
    (dict(grid_transform=dict(TOY, output_scope=[[-6, 6, 0], [-4, 4, 1]])), 'whole number of s'),
    (dict(grid_transform=dict(TOY, input_scope=[[8, -8, 1], [-8, 8, 1]])), 'whole number of s')])
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        toy_head(**changes)


def test_wrong_or_missing_maps_are_named():
    head, bev = toy_head(), torch.zeros(1, 4, 16, 16)
    with pytest.raises(DataError, match='sample abc has no gt_bev_map'):
        head.loss(bev, [Det3DDataSample(metainfo=dict(token='abc'))])
    with pytest.raises(DataError, match=r'\(3, 8, 12\).*predicts \(3, 12, 8\)'):
        head.loss(bev, [map_sample(np.zeros((3, 8, 12), np.uint8))])


def test_the_grid_is_not_in_the_state_dict():
    assert all(k.startswith('classifier.') for k in toy_head().state_dict())
