"""Swin blocks without what they spend on moving memory, for inference and for training on a CPU.

MMDetection's blocks (Liu et al., 'Swin Transformer', ICCV 2021) pad, roll, cut into windows, split
heads, add two masks and undo all of it, each step a copy of the whole map, and they project the
padding along with the image. Here one gather makes the windows and one undoes them, only the
image's own tokens are projected, and tokens pass in pieces that stay in the cache. The weights,
the state dict and, but for rounding, the numbers are those of the blocks that are replaced.

With gradients this is for CPUs, where attention and the hidden features of an FFN are computed anew
for the backward pass rather than kept; on a GPU, and with dropout, the blocks train as MMDetection
wrote them.

Shapes: B images of H x W tokens, L = H * W, C channels, N tokens of a window, V windows of an
image, h heads.
"""
import functools
from typing import Tuple

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.backbones.swin import ShiftWindowMSA, SwinBlock, WindowMSA
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bevfusion_enhanced.ops.feed_forward import feed_forward
from bevfusion_enhanced.ops.precision import computed_dtype
from bevfusion_enhanced.ops.row_sums import runs_eagerly_on_cpu
from bevfusion_enhanced.ops.window_attention import Windows, attend_at_once, attend_in_windows

CACHED_TOKENS = 1024  # whose hidden features of an FFN fit into a core's second-level cache
FORBIDDEN = -100.0  # what MMDetection adds to the attention between tokens that are no neighbours


@functools.lru_cache(maxsize=32)
def windows_of(height: int, width: int, *, window: int, shift: int,
               device: torch.device) -> Windows:
    """The windows of an image of `height` x `width` tokens.

    Args:
        height: H.
        width: W.
        window: tokens along a window's side.
        shift: tokens by which the padded image is rolled up and left before it is cut.
        device: where the windows are wanted.
    """
    rows, columns = (-(-size // window) * window for size in (height, width))
    tokens = torch.full((rows, columns), height * width)
    tokens[:height, :width] = torch.arange(height * width).view(height, width)
    source = _cut(tokens.roll((-shift, -shift), dims=(0, 1)), window)                  # (V, N)
    place = torch.empty(height * width + 1, dtype=torch.long)
    place[source.flatten()] = torch.arange(source.numel())
    mask = None
    if shift:
        parts = [torch.bucketize(torch.arange(size), torch.tensor([size - window, size - shift]),
                                 right=True) for size in (rows, columns)]
        region = _cut(parts[0][:, None] * 3 + parts[1], window)                        # (V, N)
        mask = FORBIDDEN * (region[:, None, :] != region[:, :, None]).float()[:, None]
        mask = mask.to(device)
    return Windows(source=source.flatten().to(device), place=place[:-1].to(device), mask=mask)


def _cut(image: Tensor, window: int) -> Tensor:
    """The windows (V, N) of an image (rows, columns) that they divide."""
    rows, columns = image.shape
    cut = image.view(rows // window, window, columns // window, window)
    return cut.transpose(1, 2).reshape(-1, window * window)


class LeanSwinBlock(SwinBlock):
    """A Swin block of MMDetection that runs as the module describes where no gradient is wanted."""

    def forward(self, x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        """Update the tokens `x` (B, L, C) of images of `hw_shape`."""
        if torch.is_grad_enabled() or self.training:
            if not (runs_eagerly_on_cpu(x) and _drops_nothing(self) and _is_plain(self.ffn)):
                return super().forward(x, hw_shape)
            if self.with_cp and x.requires_grad:
                return checkpoint(self._train, x, hw_shape, use_reentrant=False)
            return self._train(x, hw_shape)
        return self._predict(x, hw_shape)

    def _train(self, x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        x = self.attn.drop(_attend(self.attn, self.norm1(x), hw_shape)) + x
        tokens = self.norm2(x).flatten(0, 1)
        (into, *_), out_of, _ = self.ffn.layers
        y = feed_forward(tokens.to(computed_dtype(tokens)), into.weight, into.bias, out_of.weight,
                         out_of.bias)
        return x + self.ffn.dropout_layer(y.view_as(x))

    def _predict(self, x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        x = x + _attend(self.attn, self.norm1(x), hw_shape)
        parts = x.flatten(0, 1).split(CACHED_TOKENS)
        return torch.cat([self.ffn(self.norm2(part), identity=part) for part in parts]).view_as(x)


def _drops_nothing(block: SwinBlock) -> bool:
    """Whether a block never drops single values; whole branches it may."""
    attention = block.attn.w_msa
    (_, _, hidden), _, out = block.ffn.layers
    return not any(layer.p for layer in (attention.attn_drop, attention.proj_drop, hidden, out))


def _is_plain(ffn: FFN) -> bool:
    """Whether two layers and an exact GELU are all that an FFN has."""
    activation = ffn.layers[0][1]
    return (isinstance(activation, nn.GELU) and activation.approximate == 'none'
            and isinstance(ffn.gamma2, nn.Identity) and ffn.add_identity)


def _position_bias(attention: WindowMSA) -> Tensor:
    """What the tokens' relative positions add to the attention: (h, N, N)."""
    side = attention.relative_position_index.shape[0]
    table = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    return table.view(side, side, -1).permute(2, 0, 1).contiguous()


def _attend(attention: ShiftWindowMSA, x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
    """Attention within windows of normalised tokens (B, L, C): (B, L, C)."""
    layers = attention.w_msa
    windows = windows_of(*hw_shape, window=attention.window_size, shift=attention.shift_size,
                         device=x.device)
    bias = _position_bias(layers)
    qkv = layers.qkv(x)                                                            # (B, L, 3C)
    padding = layers.qkv.bias
    padding = qkv.new_zeros(qkv.shape[2]) if padding is None else padding.to(qkv.dtype)
    attend = attend_in_windows if runs_eagerly_on_cpu(x) else attend_at_once
    return layers.proj(attend(qkv, padding, bias, windows, scale=layers.scale))


def lean_blocks(module: nn.Module) -> None:
    """Let MMDetection's Swin blocks inside `module` run as the module describes."""
    for part in module.modules():
        if type(part) is SwinBlock:
            part.__class__ = LeanSwinBlock
