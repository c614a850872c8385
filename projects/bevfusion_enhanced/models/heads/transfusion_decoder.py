"""The transformer layer in which proposals look at one another and at the BEV map.

Shapes: B samples, C channels, P proposals, L cells of the map in a row, h heads of d channels,
2 coordinates in cells.
"""
from typing import Dict, Optional

from mmcv.cnn import build_activation_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.heads.transfusion_options import (
    AttentionOptions,
    FeedForwardOptions,
    PositionOptions,
    read_options,
)
from bevfusion_enhanced.ops.dropped_attention import dropped_attention


class PositionEmbedding(BaseModule):
    """A learned embedding of positions on the map.

    Args:
        input_channel: coordinates of a position.
        num_pos_feats: C.
    """

    def __init__(self, *, input_channel: int, num_pos_feats: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(input_channel, num_pos_feats, 1),
            nn.BatchNorm1d(num_pos_feats),
            nn.ReLU(inplace=True),
            nn.Conv1d(num_pos_feats, num_pos_feats, 1))

    def forward(self, position: Tensor) -> Tensor:
        """Embed positions (B, P, 2) as (B, P, C)."""
        return self.position_embedding_head(position.transpose(1, 2)).transpose(1, 2)


class CrossAttention(nn.MultiheadAttention):
    """Attention from a few proposals to the whole map, whose dropout takes little memory.

    Args:
        channels: C.
        num_heads: attention heads.
        dropout: probability, in training, that a proposal overlooks a cell.
    """

    def __init__(self, channels: int, num_heads: int, *, dropout: float) -> None:
        super().__init__(channels, num_heads, dropout=dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """What `query` (B, P, C) sees in `key` (B, L, C), which is the value, too: (B, P, C)."""
        if not self.training:
            return super().forward(query, key, key, need_weights=False)[0]
        widths = (self.embed_dim, 2 * self.embed_dim)
        weights, biases = self.in_proj_weight.split(widths), self.in_proj_bias.split(widths)
        query = F.linear(query, weights[0], biases[0])                                 # (B, P, C)
        key, value = F.linear(key, weights[1], biases[1]).chunk(2, dim=-1)             # (B, L, C)
        seen = dropped_attention(*(self._heads(x) for x in (query, key, value)),
                                 dropout=self.dropout)                              # (B, h, P, d)
        return self.out_proj(seen.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@MODELS.register_module()
class TransformerDecoderLayer(BaseModule):
    """Self-attention, cross-attention and a perceptron, each added to its input, then normalised.

    As in Carion et al., 'End-to-End Object Detection with Transformers', ECCV 2020, but with the
    position embedding added to the values, too (Bai et al., 'TransFusion', CVPR 2022).

    Args:
        self_attn_cfg: fields of AttentionOptions, among the proposals.
        cross_attn_cfg: fields of AttentionOptions, from the proposals to the map.
        ffn_cfg: fields of FeedForwardOptions.
        pos_encoding_cfg: fields of PositionOptions.
        norm_cfg: dict(type='LN'), the only norm there is.

    Raises:
        ConfigError: for an unknown field, or numbers of channels that differ.
    """

    def __init__(self, *, self_attn_cfg: Dict, cross_attn_cfg: Dict, ffn_cfg: Dict,
                 pos_encoding_cfg: Dict, norm_cfg: Optional[Dict] = None) -> None:
        super().__init__()
        own = read_options(AttentionOptions, self_attn_cfg, 'self_attn_cfg of decoder_layer')
        cross = read_options(AttentionOptions, cross_attn_cfg, 'cross_attn_cfg of decoder_layer')
        ffn = read_options(FeedForwardOptions, ffn_cfg, 'ffn_cfg of decoder_layer')
        position = read_options(PositionOptions, pos_encoding_cfg,
                                'pos_encoding_cfg of decoder_layer')
        channels = own.embed_dims
        widths = (channels, cross.embed_dims, ffn.embed_dims, position.num_pos_feats)
        if len(set(widths)) > 1:
            raise ConfigError('decoder_layer must have one width, but embed_dims of self_attn_cfg, '
                              f'cross_attn_cfg, ffn_cfg and num_pos_feats are {widths}')
        if ffn.num_fcs != 2 or (norm_cfg or {}).get('type', 'LN') != 'LN':
            raise ConfigError('decoder_layer has two fully connected layers and layer norms, got '
                              f'num_fcs={ffn.num_fcs}, norm_cfg={norm_cfg}')
        self.embed_dims = channels
        self.self_attn = nn.MultiheadAttention(
            channels, own.num_heads, dropout=own.dropout, batch_first=True)
        self.multihead_attn = CrossAttention(
            channels, cross.num_heads, dropout=cross.dropout)
        self.linear1 = nn.Linear(channels, ffn.feedforward_channels)
        self.linear2 = nn.Linear(ffn.feedforward_channels, channels)
        self.activation = build_activation_layer(dict(ffn.act_cfg or dict(type='ReLU')))
        self.dropout = nn.Dropout(ffn.ffn_drop)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout1 = nn.Dropout(own.dropout)
        self.dropout2 = nn.Dropout(cross.dropout)
        self.dropout3 = nn.Dropout(ffn.ffn_drop)
        self.self_posembed, self.cross_posembed = (
            PositionEmbedding(input_channel=position.input_channel, num_pos_feats=channels)
            for _ in range(2))

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """Update the proposals.

        Args:
            query: (B, P, C) features of the proposals.
            key: (B, L, C) features of the map.
            query_pos: (B, P, 2) positions of the proposals in cells.
            key_pos: (1, L, 2) positions of the map's cells.

        Returns:
            (B, P, C).
        """
        where = self.self_posembed(query_pos)                                          # (B, P, C)
        placed_key = key + self.cross_posembed(key_pos)                                # (B, L, C)

        placed = query + where
        seen = self.self_attn(placed, placed, placed, need_weights=False)[0]
        query = self.norm1(query + self.dropout1(seen))

        seen = self.multihead_attn(query + where, placed_key)
        query = self.norm2(query + self.dropout2(seen))

        thought = self.linear2(self.dropout(self.activation(self.linear1(query))))
        return self.norm3(query + self.dropout3(thought))
