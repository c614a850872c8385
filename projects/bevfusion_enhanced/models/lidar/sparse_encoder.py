"""The sparse convolutional encoder of voxels, over spconv.

Voxels are indexed (batch, x, y, z), so the dense map comes out as (X, Y) without a transpose.
Weights are kept in the layout of spconv 2: (out, kx, ky, kz, in).

Shapes: V voxels, B samples, C channels, X, Y, Z cells of the last grid.
"""
import contextlib
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from spconv.pytorch import (
    ConvAlgo,
    SparseConv3d,
    SparseConvTensor,
    SparseModule,
    SparseSequential,
    SubMConv3d,
)
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.ops.gathered_conv import gathered_conv
from bevfusion_enhanced.ops.precision import computed_dtype
from bevfusion_enhanced.ops.sparse_conv import ConvPlan, sparse_conv
from bevfusion_enhanced.ops.voxel_pairs import (
    output_shape,
    places_of,
    strided_pairs,
    submanifold_pairs,
)

Padding = Union[int, Sequence[int]]


class _Meeting(NamedTuple):
    """Where voxels meet: layers on one grid share it.

    Attributes:
        plan: which input meets which output.
        voxels: (M, 4) int32, the outputs'.
        shape: cells along x, y, z of the output.
    """

    plan: ConvPlan
    voxels: Tensor
    shape: List[int]


class _PortableConv:
    """What our sparse convolutions add to spconv's.

    On a CPU they convolve by `sparse_conv`, or under bfloat16's autocast by `gathered_conv`, over
    voxels in the order of sample, x, y, z. And they load a state dict as it is: MMDetection3D
    replaces spconv's loading by one that permutes the weights unless the state dict's metadata says
    version 2, which a state dict rebuilt from plain tensors never does.
    """

    _load_from_state_dict = nn.Module._load_from_state_dict

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Convolve, by an algorithm that the tensor's device has.

        Raises:
            ValueError: On a CPU, voxels that are not sorted.
        """
        if x.features.device.type == 'cpu':
            return self._forward_on_cpu(x)
        self.algo = ConvAlgo.MaskImplicitGemm
        return super().forward(x)

    def _forward_on_cpu(self, x: SparseConvTensor) -> SparseConvTensor:
        meeting = self._meeting(x)
        weight = self.weight.flatten(1, 3)                                     # (O, K, C)
        if self.subm and computed_dtype(x.features) == torch.bfloat16:
            y = gathered_conv(x.features.bfloat16(), weight, meeting.plan.neighbours)
        else:
            y = sparse_conv(x.features.to(weight.dtype), weight, meeting.plan)
        out = x.replace_feature(y)
        out.indices = meeting.voxels
        out.spatial_shape = meeting.shape
        if self.indice_key is not None:
            out.indice_dict = {**x.indice_dict, self.indice_key: meeting}
        return out


class SubmanifoldConv(_PortableConv, SubMConv3d):
    """A 3x3x3 convolution that keeps the set of voxels (Graham et al., CVPR 2018).

    Args:
        in_channels: of a voxel.
        out_channels: of a voxel.
        indice_key: layers that share it share their table of neighbours.
    """

    def __init__(self, *, in_channels: int, out_channels: int,
                 indice_key: Optional[str] = None) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False,
                         indice_key=indice_key)

    def _meeting(self, x: SparseConvTensor) -> _Meeting:
        """That of an earlier layer with the same key, or a new one."""
        known = x.find_indice_pair(self.indice_key)
        if known is None:
            taps = submanifold_pairs(x.indices, shape=x.spatial_shape)
            return _Meeting(ConvPlan(taps=taps, num_inputs=len(x.indices),
                                     num_outputs=len(x.indices)), x.indices, x.spatial_shape)
        if known.shape != x.spatial_shape or len(known.voxels) != len(x.indices):
            raise ValueError(
                f'indice_key {self.indice_key!r} is of {len(known.voxels)} voxels on a grid of '
                f'{known.shape}, this layer has {len(x.indices)} on {x.spatial_shape}; layers '
                'share a key where they share a grid')
        return known


class StridedConv(_PortableConv, SparseConv3d):
    """A convolution whose outputs are all cells that any voxel reaches.

    Args:
        in_channels: of a voxel.
        out_channels: of a voxel.
        kernel_size: along x, y, z.
        stride: along x, y, z.
        padding: along x, y, z.
    """

    def __init__(self, *, in_channels: int, out_channels: int, kernel_size: Padding,
                 stride: Padding, padding: Padding) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding,
                         bias=False)

    def _meeting(self, x: SparseConvTensor) -> _Meeting:
        steps = dict(kernel=self.kernel_size, stride=self.stride, padding=self.padding)
        voxels, taps = strided_pairs(x.indices, shape=x.spatial_shape, **steps)
        plan = ConvPlan(taps=taps, num_inputs=len(x.indices), num_outputs=len(voxels))
        return _Meeting(plan, voxels, list(output_shape(x.spatial_shape, **steps)))


def _with_norm(conv: nn.Module, norm_cfg: Dict) -> SparseSequential:
    norm = build_norm_layer(norm_cfg, conv.out_channels)[1]
    return SparseSequential(conv, norm, nn.ReLU(inplace=True))


class SparseBasicBlock(SparseModule):
    """Two submanifold convolutions and a shortcut (He et al., CVPR 2016, on voxels).

    Args:
        channels: of a voxel, in and out.
        norm_cfg: the norm after each convolution.
        indice_key: the grid that the voxels lie on.
    """

    def __init__(self, *, channels: int, norm_cfg: Dict, indice_key: str) -> None:
        super().__init__()
        conv = dict(in_channels=channels, out_channels=channels, indice_key=indice_key)
        self.conv1 = SubmanifoldConv(**conv)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.conv2 = SubmanifoldConv(**conv)
        self.bn2 = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Return voxels of the same places and channels."""
        out = self.conv1(x)
        out = out.replace_feature(self.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.replace_feature(self.relu(self.bn2(out.features) + x.features))


@MODELS.register_module()
class BEVFusionSparseEncoder(BaseModule):
    """Stages of sparse blocks, each but the last closed by a halving, folded into a BEV map.

    The encoder of SECOND (Yan et al., Sensors 2018) with residual blocks, as in CenterPoint (Yin
    et al., CVPR 2021) and BEVFusion. Each stage lists its blocks' channels; its last entry, in
    every stage but the last, is a convolution with the stride and padding listed for it.

    Args:
        in_channels: features of a voxel.
        sparse_shape: cells along x, y, z of the voxel grid; z one more than its voxels.
        norm_cfg: the norm after every convolution.
        base_channels: of the first convolution.
        output_channels: of the last one; the map has these times the cells left along z.
        encoder_channels: for each stage, the channels of its blocks.
        encoder_paddings: for each stage, the paddings along x, y, z; only those of the halving
            convolutions matter.
        strides: of the convolution that closes each stage but the last, one number or one each
            along x, y, z; all 2 where left out. (1, 1, 2) for a 2 makes the BEV map twice
            as fine with the same weights.
        order: kept for published configs; only ('conv', 'norm', 'act') exists here.
        block_type: kept for published configs; only 'basicblock' exists here.
    """

    def __init__(self, *, in_channels: int, sparse_shape: Sequence[int],
                 norm_cfg: Optional[Dict] = None, base_channels: int = 16,
                 output_channels: int = 128,
                 encoder_channels: Sequence[Sequence[int]] = (
                     (16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
                 encoder_paddings: Sequence[Sequence[Padding]] = (
                     (0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
                 strides: Optional[Sequence[Padding]] = None,
                 order: Sequence[str] = ('conv', 'norm', 'act'),
                 block_type: str = 'basicblock') -> None:
        super().__init__()
        if tuple(order) != ('conv', 'norm', 'act') or block_type != 'basicblock':
            raise ConfigError("BEVFusionSparseEncoder has only order=('conv', 'norm', 'act') and "
                              f"block_type='basicblock', got {tuple(order)} and {block_type!r}")
        strides = [2] * (len(encoder_channels) - 1) if strides is None else list(strides)
        if len(strides) != len(encoder_channels) - 1:
            raise ConfigError(f'BEVFusionSparseEncoder: strides={strides} needs one for '
                              f'each stage but the last, {len(encoder_channels) - 1}')
        norm_cfg = norm_cfg or dict(type='BN1d', eps=1e-3, momentum=0.01)
        self.in_channels = in_channels
        self.sparse_shape = list(sparse_shape)
        self.conv_input = _with_norm(
            SubmanifoldConv(in_channels=in_channels, out_channels=base_channels,
                            indice_key='grid1'), norm_cfg)
        self.encoder_layers = SparseSequential()
        channels = base_channels
        for i, stage in enumerate(encoder_channels):
            is_last = i == len(encoder_channels) - 1
            layers = _stage(channels, stage, paddings=encoder_paddings[i], norm_cfg=norm_cfg,
                            indice_key=f'grid{i + 1}', stride=None if is_last else strides[i])
            self.encoder_layers.add_module(f'encoder_layer{i + 1}', layers)
            channels = stage[-1]
        self.conv_out = _with_norm(
            StridedConv(in_channels=channels, out_channels=output_channels,
                        kernel_size=(1, 1, 3), stride=(1, 1, 2), padding=0), norm_cfg)
        self.output_channels = output_channels

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Encode the voxels of a batch.

        Args:
            features: (V, in_channels).
            coords: (V, 4) sample, x, y, z; V may be 0.
            batch_size: B, also where the last samples have no voxel.

        Returns:
            (B, C * Z, X, Y) float32, zero for a sample without voxels; channel c * Z + z.
        """
        if len(features) == 0:
            return self._empty(features, batch_size)
        on_cpu = features.device.type == 'cpu'
        if on_cpu:
            features, coords = _sorted_by_place(features, coords, self.sparse_shape)
        exactly = torch.autocast(features.device.type, enabled=False)
        with exactly:  # bfloat16 rounds 54 m by 12 cm
            x = self.conv_input(SparseConvTensor(
                features.float(), coords.int().contiguous(), self.sparse_shape, batch_size))
        # on a GPU spconv would compute in float16, whatever the autocast is for
        with contextlib.nullcontext() if on_cpu else exactly:
            dense = self.conv_out(self.encoder_layers(x)).dense(
                channels_first=False)                                          # (B, X, Y, Z, C)
        return dense.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)            # channels last

    def output_shape(self) -> Tuple[int, int, int]:
        """Channels, X and Y of the map."""
        shape = self.sparse_shape
        for layer in self.modules():
            if isinstance(layer, StridedConv):
                shape = output_shape(shape, kernel=layer.kernel_size, stride=layer.stride,
                                     padding=layer.padding)
        return self.output_channels * shape[2], shape[0], shape[1]

    def _empty(self, features: Tensor, batch_size: int) -> Tensor:
        """The map of no voxels at all; in training every weight gets a zero gradient."""
        bev = features.new_zeros(batch_size, *self.output_shape())
        if self.training:
            bev = bev + 0 * sum(p.sum() for p in self.parameters())
        return bev


def _sorted_by_place(features: Tensor, coords: Tensor,
                     sparse_shape: Sequence[int]) -> Tuple[Tensor, Tensor]:
    """The same voxels in order, as our convolutions for a CPU take them."""
    places = places_of(coords, shape=sparse_shape)
    if bool((places[1:] > places[:-1]).all()):
        return features, coords
    order = torch.argsort(places)
    return features.index_select(0, order), coords.index_select(0, order)


def _stage(in_channels: int, channels: Sequence[int], *, paddings: Sequence[Padding],
           norm_cfg: Dict[str, Any], indice_key: str,
           stride: Optional[Padding]) -> SparseSequential:
    """The blocks of one grid and, where there is a stride, the convolution to the next."""
    blocks = channels if stride is None else channels[:-1]
    if any(c != in_channels for c in blocks):
        raise ConfigError(f'encoder_channels: residual blocks keep their channels, but a stage of '
                          f'{tuple(channels)} follows {in_channels} channels')
    layers: List[nn.Module] = [
        SparseBasicBlock(channels=c, norm_cfg=norm_cfg, indice_key=indice_key) for c in blocks]
    if stride is not None:
        conv = StridedConv(in_channels=in_channels, out_channels=channels[-1], kernel_size=3,
                           stride=stride, padding=paddings[len(blocks)])
        layers.append(_with_norm(conv, norm_cfg))
    return SparseSequential(*layers)
