"""The transformer layer against PyTorch's own, and what it refuses."""
import pytest
import torch
from mmdet3d.registry import MODELS
from torch import nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.heads.transfusion_decoder import (
    CrossAttention,
    TransformerDecoderLayer,
)


def layer(channels: int = 16, **changes) -> TransformerDecoderLayer:
    torch.manual_seed(0)
    attention = dict(embed_dims=channels, num_heads=4, dropout=0.1)
    config = dict(
        type='TransformerDecoderLayer', self_attn_cfg=attention, cross_attn_cfg=attention,
        ffn_cfg=dict(embed_dims=channels, feedforward_channels=32, ffn_drop=0.1),
        pos_encoding_cfg=dict(num_pos_feats=channels), norm_cfg=dict(type='LN'))
    return MODELS.build({**config, **changes})


def inputs(batch: int = 2) -> tuple:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, 5, 16, generator=generator),
            torch.randn(batch, 12, 16, generator=generator),
            torch.rand(batch, 5, 2, generator=generator), torch.rand(1, 12, 2, generator=generator))


def test_without_positions_it_is_pytorchs_decoder_layer():
    ours = layer().eval()
    theirs = nn.TransformerDecoderLayer(16, 4, 32, 0.1, batch_first=True).eval()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if 'posembed' not in k})
    for embed in (ours.self_posembed, ours.cross_posembed):
        nn.init.zeros_(embed.position_embedding_head[-1].weight)
        nn.init.zeros_(embed.position_embedding_head[-1].bias)
    query, key, query_pos, key_pos = inputs()
    torch.testing.assert_close(ours(query, key, query_pos, key_pos), theirs(query, key),
                               atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('training', [True, False])
def test_cross_attention_is_pytorchs(training):
    ours = CrossAttention(16, 4, dropout=0.0).train(training)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    theirs.load_state_dict(ours.state_dict())
    query, key = inputs()[:2]
    torch.testing.assert_close(ours(query, key), theirs(query, key, key)[0])


def test_the_order_of_proposals_and_of_cells_does_not_matter():
    ours = layer().eval()
    query, key, query_pos, key_pos = inputs()
    expected = ours(query, key, query_pos, key_pos)
    p, c = torch.randperm(5), torch.randperm(12)
    shuffled = ours(query[:, p], key[:, c], query_pos[:, p], key_pos[:, c])
    torch.testing.assert_close(shuffled, expected[:, p], atol=1e-5, rtol=1e-4)
    elsewhere = ours(query, key, query_pos, key_pos + 1)
    assert not torch.allclose(elsewhere, expected, atol=1e-3)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(ffn_cfg=dict(embed_dims=8, feedforward_channels=32)), r'one width.*\(16, 16, 8, 16\)'),
    (dict(norm_cfg=dict(type='BN')), 'layer norms'),
    (dict(pos_encoding_cfg=dict(num_pos_feats=16, size=3)), r"does not know \['size'\]"),
    (dict(self_attn_cfg=dict(embed_dims=16)), r"needs \['num_heads'\]")])
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        layer(**changes)
