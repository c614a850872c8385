"""A batch trained on in parts gives the update of the whole batch, whatever losses divide by."""
import copy

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from torch import nn

from bevfusion_enhanced.engine.loop.micro_batches import train_in_parts
from bevfusion_enhanced.models.heads.enhanced_segmentation import EnhancedBEVSegmentationHead

CAR = [3.0, -8.0, -1.0, 1.9, 4.5, 1.6, 0.4, 2.0, 5.0]
PEDESTRIAN = [-7.0, 5.0, -1.2, 0.6, 0.7, 1.8, 1.4, 0.5, -0.5]


class TwoHeads(BaseModel):
    """A convolution before a detection head and a map head."""

    def __init__(self, heads):
        super().__init__()
        self.encoder = nn.Conv2d(4, 8, 1)
        self.heads = nn.ModuleDict(heads)
        self.eval()  # no dropout, and norms that do not look at their batch

    def forward(self, maps, data_samples, mode='loss'):
        bev = self.encoder(torch.stack(list(maps)))
        return {f'loss/{task}/{name}': value for task, head in self.heads.items()
                for name, value in head.loss(bev, data_samples).losses.items()}


@pytest.fixture
def model(head_config):
    torch.manual_seed(0)
    grid = dict(input_scope=[[-8, 8, 1]] * 2, output_scope=[[-6, 6, 1], [-4, 4, 1]])
    head = head_config(grid=16, voxel=0.25, in_channels=8, hidden=16, proposals=20)
    return TwoHeads({
        'object': MODELS.build(head),
        'map': EnhancedBEVSegmentationHead(
            in_channels=8, classes=['divider', 'walkway', 'stop_line'], grid_transform=grid,
            decoder_channels=[16, 16, 8], dropout=0.0)})


def batch(detection_sample, truths):
    generator = torch.Generator().manual_seed(1)
    samples = []
    for boxes in truths:
        sample: Det3DDataSample = detection_sample(boxes, list(range(len(boxes))))
        masks = torch.rand(3, 12, 8, generator=generator) < 0.3
        sample.gt_bev_map = PixelData(masks=masks.to(torch.uint8))
        samples.append(sample)
    maps = [torch.randn(4, 16, 16, generator=generator) for _ in samples]
    return dict(maps=maps, data_samples=samples)


def updated(model, data, part_size):
    model = copy.deepcopy(model)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), clip_grad=dict(max_norm=5.))
    if part_size is None:
        logs = model.train_step(data, wrapper)
    else:
        logs = train_in_parts(model, data, wrapper, part_size=part_size)
    return model.state_dict(), logs


@pytest.mark.parametrize('truths', [
    [[CAR], [CAR, PEDESTRIAN], [], [PEDESTRIAN]],  # parts of unequal numbers of objects
    [[], [], [], []],
    [[CAR], [], [], []],
    [[CAR, PEDESTRIAN], [CAR], [PEDESTRIAN]],  # three samples: three parts of one
])
@pytest.mark.parametrize('part_size', [1, 2])
def test_the_update_is_that_of_the_whole_batch(model, detection_sample, truths, part_size):
    data = batch(detection_sample, truths)
    whole, whole_logs = updated(model, data, None)
    parts, logs = updated(model, data, part_size)
    assert any(not torch.equal(whole[name], value) for name, value in model.state_dict().items())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for name, value in whole_logs.items():
        torch.testing.assert_close(logs[name], torch.as_tensor(value), rtol=1e-4, atol=1e-5)


def test_averaging_the_parts_would_not_be_the_same(model, detection_sample):
    """What plain accumulation does: each part divides by its own number of objects."""
    data = batch(detection_sample, [[CAR], [CAR, PEDESTRIAN], [], [PEDESTRIAN]])
    whole, _ = updated(model, data, None)
    plain = copy.deepcopy(model)
    wrapper = OptimWrapper(torch.optim.SGD(plain.parameters(), lr=0.1), accumulative_counts=4,
                           clip_grad=dict(max_norm=5.))
    for index in range(4):
        plain.train_step({key: value[index:index + 1] for key, value in data.items()}, wrapper)
    key = 'heads.object.shared_conv.weight'
    assert not torch.allclose(plain.state_dict()[key], whole[key], rtol=1e-3, atol=1e-5)


def test_counts_are_those_that_losses_divide_by(model, detection_sample):
    head = model.heads['object']
    data = batch(detection_sample, [[CAR], [CAR, PEDESTRIAN], []])
    assert head.counts(data['data_samples']) == dict(matched=3, peaks=3)
    assert model.heads['map'].counts(data['data_samples']) == {}
    assert head.counts(data['data_samples'][2:]) == dict(matched=0, peaks=0)
