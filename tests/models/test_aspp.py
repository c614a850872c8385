"""ASPP has the designed keys, a wide view, and no coupling between samples."""
import pytest
import torch

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.aspp import ASPP


def test_keys_and_shapes_of_the_design():
    aspp = ASPP(in_channels=512, out_channels=256)
    shapes = {k: tuple(v.shape) for k, v in aspp.state_dict().items()}
    expected = {'convs.0.weight': (256, 512, 1, 1), 'global_conv.weight': (256, 512, 1, 1),
                'project.weight': (256, 1280, 1, 1)}
    expected.update({f'convs.{i}.weight': (256, 512, 3, 3) for i in (1, 2, 3)})
    for norm in ('bns.0', 'bns.1', 'bns.2', 'bns.3', 'global_norm', 'project_norm'):
        expected.update({f'{norm}.weight': (256,), f'{norm}.bias': (256,)})
    assert shapes == expected


def test_dilated_branches_reach_as_far_as_they_say():
    torch.manual_seed(0)
    aspp = ASPP(in_channels=4, out_channels=8, num_groups=4)
    x = torch.zeros(1, 4, 61, 61)
    x[:, :, 30, 30] = 1
    for conv, dilation in zip(aspp.convs, (0, 6, 12, 18)):
        cells = conv(x).abs().sum(1)[0].nonzero()
        assert (cells - 30).abs().max() == dilation


def test_samples_of_a_batch_do_not_meet_and_evaluation_is_deterministic():
    torch.manual_seed(0)
    aspp = ASPP(in_channels=16, out_channels=32, num_groups=8).eval()
    x = torch.randn(2, 16, 9, 11)
    y = aspp(x)
    assert y.shape == (2, 32, 9, 11)
    assert torch.equal(y, aspp(x))
    torch.testing.assert_close(y, torch.cat([aspp(s[None]) for s in x]))


def test_one_sample_trains():
    aspp = ASPP(in_channels=16, out_channels=32, num_groups=8).train()
    aspp(torch.randn(1, 16, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in aspp.parameters())


def test_groups_must_divide_the_channels():
    with pytest.raises(ConfigError, match='num_groups'):
        ASPP(in_channels=16, out_channels=20, num_groups=8)
