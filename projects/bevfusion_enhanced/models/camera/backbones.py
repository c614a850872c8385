"""Image backbones: any model of timm, and what every backbone's state dict leaves out.

Shapes: B images, H x W pixels, C_i channels and h_i x w_i cells at level i.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError

GEOMETRY_BUFFERS = ('relative_position_index',)


def forget_geometry(module: nn.Module) -> None:
    """Keep buffers that follow from the config (`GEOMETRY_BUFFERS`) out of the state dict."""
    for part in module.modules():
        names = [name for name in GEOMETRY_BUFFERS if name in part._buffers]
        part._non_persistent_buffers_set.update(names)


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Any model of timm (Wightman, 'PyTorch Image Models') as a pyramid of feature maps.

    Args:
        model_name: timm's name of the model.
        out_indices: levels to return, from fine to coarse, as timm numbers them for this model.
        pretrained: fetch timm's weights when the model's weights are initialised. A model that
            goes on to load a checkpoint never fetches them.
        drop_path_rate: stochastic depth in training.
        model_kwargs: further arguments of the timm model.
    """

    def __init__(self, *, model_name: str, out_indices: Sequence[int], pretrained: bool = False,
                 drop_path_rate: Optional[float] = None,
                 model_kwargs: Optional[Dict[str, Any]] = None) -> None:
        super().__init__()
        self.model_name = model_name
        self.out_indices = tuple(out_indices)
        self.pretrained = pretrained
        self.model_kwargs = dict(model_kwargs or {})
        if drop_path_rate is not None:
            self.model_kwargs['drop_path_rate'] = drop_path_rate
        self.model = self._create(pretrained=False)
        self.channels_last = str(getattr(self.model.output_fmt, 'value', '')) == 'NHWC'

    @property
    def out_channels(self) -> List[int]:
        """Channels of each returned level: what the neck's in_channels must be."""
        return list(self.model.feature_info.channels())

    @property
    def strides(self) -> List[int]:
        """Pixels of the image per cell of each returned level."""
        return list(self.model.feature_info.reduction())

    def init_weights(self) -> None:
        """Load timm's weights where `pretrained`; otherwise keep timm's initialisation."""
        if self.pretrained and not self.is_init:
            self.model.load_state_dict(self._create(pretrained=True).state_dict())
        self._is_init = True

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Return the levels (B, C_i, h_i, w_i) of images (B, 3, H, W)."""
        levels = self.model(x)
        if self.channels_last:
            levels = [level.permute(0, 3, 1, 2).contiguous() for level in levels]
        return tuple(levels)

    def _create(self, *, pretrained: bool) -> nn.Module:
        """Build the timm model; a transformer made for one image size is made to take any."""
        import timm  # a second of import that only this backbone needs

        if not timm.is_model(self.model_name):
            near = timm.list_models(f'*{self.model_name.split("_")[0]}*')[:5]
            raise ConfigError(f'timm has no model {self.model_name!r}; did you mean one of {near}?')
        arguments = dict(features_only=True, out_indices=self.out_indices, pretrained=pretrained,
                         **self.model_kwargs)
        try:
            return timm.create_model(self.model_name, strict_img_size=False, **arguments)
        except TypeError:  # a convolutional model does not know the argument
            pass
        try:
            return timm.create_model(self.model_name, **arguments)
        except (AssertionError, IndexError) as error:
            raise ConfigError(f'timm model {self.model_name!r} cannot give out_indices='
                              f'{self.out_indices}: {error}') from error
