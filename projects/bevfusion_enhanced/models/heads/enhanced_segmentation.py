"""The enhanced map head: several scales, attention, a classifier for each class, deep supervision.

Shapes: B samples, C channels, F feature channels, K map classes, X and Y cells of the shared BEV
map, U and V cells of the predicted map, along LiDAR x (right) and y (forward).
"""
import math
from typing import Dict, List, Optional, Sequence

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.aspp import ASPP
from bevfusion_enhanced.models.attention import ChannelAttention, SpatialAttention
from bevfusion_enhanced.models.heads.base import TaskLosses
from bevfusion_enhanced.models.heads.bev_map import BEVMapHead
from bevfusion_enhanced.models.losses import dice_loss, sigmoid_cross_entropy, sigmoid_focal_loss
from bevfusion_enhanced.models.recompute import keep_convolutions_only
from bevfusion_enhanced.ops.group_norm import GroupNorm

# Share of positives that an untrained classifier predicts: with a focal loss, starting at one half
# would let the many negatives dominate the first steps (Lin et al., 2017, section 4.1).
PRIOR = 0.1


@MODELS.register_module()
class EnhancedBEVSegmentationHead(BEVMapHead):
    """Resample, ASPP, channel and spatial attention, a decoder, and the classifiers.

    Each part has a switch, so that an ablation is one line of config. Without ASPP a 1x1
    convolution brings C to F channels; without per-class classifiers one classifier of the same
    form predicts all classes.

    Args:
        in_channels: C.
        grid_transform: arguments of BEVGridTransform.
        classes: names of the K map classes.
        loss: 'focal' or 'xent'; logged as `<class>/focal` or `<class>/xent`.
        loss_weight: factor of all losses of a class; 1 for classes that are not named.
        deep_supervision: while training, also classify the features before the attention.
        aux_weight: factor of that classifier's loss, logged as `<class>/aux`.
        use_dice_loss: add the Dice loss, logged as `<class>/dice`.
        dice_weight: factor of the Dice loss.
        focal_alpha: weight of the positives in the focal loss; negative for none.
        focal_gamma: focus of the focal loss.
        decoder_channels: F, then the width of each decoder layer.
        dropout: probability of zeroing a channel after each decoder layer while training.
        with_cp: keep less for the backward pass, see `models/recompute.py`.
        use_aspp, use_channel_attention, use_spatial_attention, per_class_classifiers: switches.

    Raises:
        ConfigError: when `loss_weight` names an unknown class or `decoder_channels` is too short.
    """

    def __init__(self, *, in_channels: int, grid_transform: Dict, classes: Sequence[str],
                 loss: str = 'focal', loss_weight: Optional[Dict[str, float]] = None,
                 deep_supervision: bool = True, aux_weight: float = 0.4,
                 use_dice_loss: bool = True, dice_weight: float = 0.5,
                 focal_alpha: float = 0.25, focal_gamma: float = 2.0,
                 decoder_channels: Sequence[int] = (256, 256, 128, 128), dropout: float = 0.1,
                 use_aspp: bool = True, use_channel_attention: bool = True,
                 use_spatial_attention: bool = True, per_class_classifiers: bool = True,
                 with_cp: bool = False) -> None:
        super().__init__(classes=classes, grid_transform=grid_transform, loss=loss)
        self.with_cp = with_cp
        if len(decoder_channels) < 2:
            raise ConfigError('decoder_channels needs the feature channels and at least one '
                              f'decoder layer, got {list(decoder_channels)}')
        self.class_weights = _class_weights(self.classes, loss_weight or {})
        self.aux_weight = aux_weight
        self.dice_weight = dice_weight if use_dice_loss else 0.0
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

        features, last = decoder_channels[0], decoder_channels[-1]
        self.aspp = self.reduce = self.channel_attn = self.spatial_attn = None
        if use_aspp:
            # its global branch normalises a single cell: a group is all that it can compare
            self.aspp = ASPP(in_channels=in_channels, out_channels=features,
                             num_groups=_groups(features, smallest=8), with_cp=with_cp)
        else:
            self.reduce = nn.Sequential(nn.Conv2d(in_channels, features, 1, bias=False),
                                        GroupNorm(_groups(features), features),
                                        nn.ReLU(inplace=True))
        if use_channel_attention:
            self.channel_attn = ChannelAttention(in_channels=features,
                                                 reduction=min(16, features))
        if use_spatial_attention:
            self.spatial_attn = SpatialAttention()
        self.decoder = _decoder(decoder_channels, dropout)
        outputs = [1] * len(self.classes) if per_class_classifiers else [len(self.classes)]
        self.classifiers = nn.ModuleList(_classifier(last, count) for count in outputs)
        self.aux_classifier = (nn.Conv2d(features, len(self.classes), 1)
                               if deep_supervision else None)
        self._start_at_prior()

    def _start_at_prior(self) -> None:
        for layer in [c[-1] for c in self.classifiers] + [self.aux_classifier]:
            if layer is not None:
                nn.init.constant_(layer.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, bev: Tensor) -> Tensor:
        """Turn `bev` (B, C, X, Y) into logits (B, K, U, V)."""
        return self._classify(self._features(bev))

    def _features(self, bev: Tensor) -> Tensor:
        """Features (B, F, U, V) before attention, which deep supervision looks at."""
        extract = self.reduce if self.aspp is None else self.aspp
        return extract(self.transform(bev))

    def _classify(self, features: Tensor) -> Tensor:
        x = features
        if self.channel_attn is not None:
            x = self.channel_attn(x)
        if self.spatial_attn is not None:
            x = self.spatial_attn(x)
        if self.with_cp:
            x = keep_convolutions_only(self.decoder, x)
            return torch.cat([keep_convolutions_only(c, x) for c in self.classifiers], dim=1)
        x = self.decoder(x)
        return torch.cat([classifier(x) for classifier in self.classifiers], dim=1)

    def loss(self, bev: Tensor, samples: Sequence[Det3DDataSample]) -> TaskLosses:
        """Compare the prediction from `bev` (B, C, X, Y) with `gt_bev_map.masks` (K, U, V)."""
        features = self._features(bev)
        logits, target = self._classify(features), self.masks(samples, bev.device)
        self.count_cells(logits, target)
        aux = None if self.aux_classifier is None else self.aux_classifier(features)
        dice = dice_loss(logits, target).mean(dim=0)                                   # (K,)
        losses: Dict[str, Tensor] = {}
        for k, (name, weight) in enumerate(zip(self.classes, self.class_weights)):
            losses[f'{name}/{self.loss_name}'] = (
                weight * self._pixel_loss(logits[:, k], target[:, k]))
            if self.dice_weight:
                losses[f'{name}/dice'] = weight * self.dice_weight * dice[k]
            if aux is not None:
                losses[f'{name}/aux'] = (
                    weight * self.aux_weight * self._pixel_loss(aux[:, k], target[:, k]))
        stats = {f'{name}/dice': value for name, value in zip(self.classes, dice.detach())}
        return TaskLosses(losses=losses, stats=stats)

    def _pixel_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss_name == 'xent':
            return sigmoid_cross_entropy(logits, target)
        return sigmoid_focal_loss(logits, target, alpha=self.focal_alpha, gamma=self.focal_gamma)


def _class_weights(classes: Sequence[str], weights: Dict[str, float]) -> List[float]:
    unknown = sorted(set(weights) - set(classes))
    if unknown:
        raise ConfigError(f'loss_weight names {unknown}, which are not among the classes '
                          f'{list(classes)}')
    return [float(weights.get(name, 1.0)) for name in classes]


def _groups(channels: int, *, smallest: int = 2) -> int:
    """Groups of a norm: 32, or fewer where a group would have fewer than `smallest` channels."""
    return math.gcd(32, channels // smallest) if channels % smallest == 0 else 1


def _decoder(channels: Sequence[int], dropout: float) -> nn.Sequential:
    layers: List[nn.Module] = []
    for width_in, width_out in zip(channels[:-1], channels[1:]):
        layers += [nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
                   GroupNorm(_groups(width_out), width_out),
                   nn.ReLU(inplace=True),
                   nn.Dropout2d(dropout)]
    return nn.Sequential(*layers)


def _classifier(channels: int, outputs: int) -> nn.Sequential:
    hidden = channels // 2
    return nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
                         GroupNorm(_groups(hidden), hidden),
                         nn.ReLU(inplace=True),
                         nn.Conv2d(hidden, outputs, 1))
