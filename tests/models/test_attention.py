"""Attention keeps shapes, has the designed parameters, and gates as its formula says."""
import pytest
import torch

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.attention import (
    ChannelAttention,
    GlobalContextAttention,
    SpatialAttention,
)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_global_context_has_the_designed_keys_and_parameters():
    gca = GlobalContextAttention(in_channels=512, reduction=4)
    assert {k: tuple(v.shape) for k, v in gca.state_dict().items()} == {
        'fc.0.weight': (128, 512), 'fc.2.weight': (512, 128)}
    assert _count(gca) == 131_072


def test_global_context_scales_whole_channels_by_a_gate_of_the_mean():
    torch.manual_seed(0)
    gca = GlobalContextAttention(in_channels=8, reduction=4)
    x = torch.randn(3, 8, 5, 7)
    first, second = gca.fc[0].weight, gca.fc[2].weight
    gate = torch.sigmoid(torch.relu(x.flatten(2).mean(-1) @ first.T) @ second.T)
    torch.testing.assert_close(gca(x), x * gate.reshape(3, 8, 1, 1))
    # a gate of the mean alone cannot see where things are
    shuffled = x.flatten(2)[..., torch.randperm(35)].reshape(x.shape)
    ratio = gca(shuffled) / shuffled
    torch.testing.assert_close(ratio, (gca(x) / x)[..., :1, :1].expand_as(ratio))


def test_channel_attention_keys_and_gate():
    torch.manual_seed(0)
    attention = ChannelAttention(in_channels=256)
    assert {k: tuple(v.shape) for k, v in attention.state_dict().items()} == {
        'fc.0.weight': (16, 256, 1, 1), 'fc.2.weight': (256, 16, 1, 1)}
    x = torch.randn(2, 256, 4, 6)

    def mlp(v):
        return (torch.relu(v @ attention.fc[0].weight.flatten(1).T)
                @ attention.fc[2].weight.flatten(1).T)

    gate = torch.sigmoid(mlp(x.flatten(2).mean(-1)) + mlp(x.flatten(2).max(-1).values))
    torch.testing.assert_close(attention(x), x * gate[:, :, None, None])


def test_spatial_attention_gates_cells_and_moves_with_them():
    torch.manual_seed(0)
    attention = SpatialAttention()
    assert {k: tuple(v.shape) for k, v in attention.state_dict().items()} == {
        'conv.weight': (1, 2, 7, 7)}
    x = torch.zeros(1, 4, 30, 30)
    x[:, :, 10:14, 12:15] = torch.rand(1, 4, 4, 3)
    moved = torch.roll(x, (5, 3), dims=(2, 3))
    torch.testing.assert_close(attention(moved), torch.roll(attention(x), (5, 3), dims=(2, 3)))
    ratio = (attention(x) / x)[:, :, 10:14, 12:15]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_samples_of_a_batch_do_not_meet():
    torch.manual_seed(0)
    x = torch.randn(3, 32, 6, 5)
    for module in (GlobalContextAttention(in_channels=32), SpatialAttention(),
                   ChannelAttention(in_channels=32)):
        alone = torch.cat([module(s[None]) for s in x])
        torch.testing.assert_close(module(x), alone)


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match='reduction'):
        GlobalContextAttention(in_channels=8, reduction=16)
    with pytest.raises(ConfigError, match='kernel_size'):
        SpatialAttention(kernel_size=4)
