"""From camera features to a BEV map: lift each pixel along its depth distribution, and splat.

Every pixel's feature vector is spread over depth bins by a predicted distribution and summed into
the BEV cells that the bins fall into (Philion and Fidler, 'Lift, Splat, Shoot', ECCV 2020). The
second transform also sees a depth map drawn from the LiDAR points (Liu et al., 'BEVFusion:
Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View Representation', ICRA 2023).

Shapes: B samples, N cameras, H x W image pixels, h x w feature cells, D depth bins, C channels;
X cells along LiDAR x (right), Y along LiDAR y (forward), Z along LiDAR z (up) of the BEV map.
"""
from typing import Optional, Sequence, Tuple

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.calibration import Calibration
from bevfusion_enhanced.models.camera.geometry import BEVGrid, bev_grid, frustum_cells, make_frustum
from bevfusion_enhanced.ops.bev_pool import PoolingPlan, bev_pool, plan_pooling
from bevfusion_enhanced.ops.depth_map import depth_maps

DEPTH_CHANNELS = 64  # of the encoded depth map
DEPTH_STRIDE = 8  # of its three convolutions


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1,
          bias: bool = True) -> Tuple[nn.Module, nn.Module, nn.Module]:
    """A convolution that keeps the size (but for its stride), its norm and its activation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride,
                     padding=kernel_size // 2, bias=bias)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _downsample(channels: int, stride: int) -> nn.Module:
    if stride < 1:
        raise ConfigError(f'downsample must be at least 1, got {stride}')
    if stride == 1:
        return nn.Identity()
    return nn.Sequential(
        *_conv(channels, channels, 3, bias=False),
        *_conv(channels, channels, 3, stride=stride, bias=False),
        *_conv(channels, channels, 3, bias=False))


class BaseViewTransform(BaseModule):
    """The geometry and the pooling that every lift-and-splat transform shares.

    `dx`, `bx`, `nx` and `frustum` are computed from the arguments: buffers that follow the module
    from device to device, but are not saved.

    Args:
        in_channels: channels of the camera features.
        out_channels: channels of the BEV map.
        image_size: (H, W) of the network's input images.
        feature_size: (h, w) of the camera features.
        xbound: (minimum, maximum, step) of the map along LiDAR x, in metres, before downsampling.
        ybound: the same along y.
        zbound: the same along z.
        dbound: the same of the depth bins.
        downsample: how many times smaller the returned map is than the pooled one.
    """

    def __init__(self, *, in_channels: int, out_channels: int, image_size: Sequence[int],
                 feature_size: Sequence[int], xbound: Sequence[float], ybound: Sequence[float],
                 zbound: Sequence[float], dbound: Sequence[float], downsample: int = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.image_size = tuple(image_size)
        self.feature_size = tuple(feature_size)
        grid = bev_grid(xbound, ybound, zbound)
        if downsample > 1 and int(grid.nx[2]) != 1:
            raise ConfigError(f'zbound={tuple(zbound)} has {int(grid.nx[2])} layers; downsample '
                              'works on one: use one layer, or downsample=1')
        for name, value in grid._asdict().items():
            self.register_buffer(name, value, persistent=False)
        frustum = make_frustum(self.image_size, self.feature_size, dbound)
        self.register_buffer('frustum', frustum, persistent=False)
        self.downsample = _downsample(out_channels, downsample)
        self._last: Optional[Tuple[Calibration, PoolingPlan]] = None

    @property
    def num_bins(self) -> int:
        """Depth bins, D."""
        return len(self.frustum)

    @property
    def grid(self) -> BEVGrid:
        """The pooled map's cells."""
        return BEVGrid(dx=self.dx, bx=self.bx, nx=self.nx)

    def pooling_plan(self, calibration: Calibration) -> PoolingPlan:
        """Which pixels and bins fall into which cell; kept for the next call with this rig."""
        if self._last is None or not self._last[0].equals(calibration):
            cells = frustum_cells(self.frustum, self.grid, calibration)
            num_cells = len(calibration.cam2img) * int(self.nx.prod())
            self._last = calibration, plan_pooling(cells, num_cells=num_cells)
        return self._last[1]

    def lift_splat(self, x: Tensor, calibration: Calibration) -> Tensor:
        """Pool the depth scores and the context of every pixel into the map.

        Args:
            x: (B * N, D + C, h, w), depth scores first.
            calibration: of the B samples.

        Returns:
            (B, Z * C, X, Y) before downsampling.
        """
        x = x.permute(0, 2, 3, 1).flatten(0, 2)                                   # (P, D + C)
        depth, context = x.split([self.num_bins, self.out_channels], dim=1)
        bev = bev_pool(depth.softmax(dim=1), context, self.pooling_plan(calibration))
        X, Y, Z = self.nx.tolist()
        bev = bev.view(-1, Z, X, Y, self.out_channels).permute(0, 2, 3, 1, 4)
        return bev.flatten(3).permute(0, 3, 1, 2)                                 # (B, Z*C, X, Y)

    def check_features(self, img_feats: Tensor) -> None:
        """Refuse features of another size than the frustum was made for.

        Raises:
            ConfigError: the size is not `feature_size`.
        """
        if tuple(img_feats.shape[-2:]) != self.feature_size:
            raise ConfigError(
                f'camera features are {tuple(img_feats.shape[-2:])}, but feature_size is '
                f'{self.feature_size}: set it to the image size over the stride of the neck\'s '
                'first output')


@MODELS.register_module()
class LSSTransform(BaseViewTransform):
    """Depth and context from the camera features alone.

    See `BaseViewTransform` for the arguments.
    """

    def __init__(self, *, in_channels: int, out_channels: int, image_size: Sequence[int],
                 feature_size: Sequence[int], xbound: Sequence[float], ybound: Sequence[float],
                 zbound: Sequence[float], dbound: Sequence[float], downsample: int = 1) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, image_size=image_size,
            feature_size=feature_size, xbound=xbound, ybound=ybound, zbound=zbound,
            dbound=dbound, downsample=downsample)
        self.depthnet = nn.Conv2d(in_channels, self.num_bins + out_channels, 1)

    def forward(self, img_feats: Tensor, points: Optional[Sequence[Tensor]],
                calibration: Calibration) -> Tensor:
        """Transform `img_feats` (B, N, C, h, w) into a BEV map (B, C, X, Y); no points needed."""
        self.check_features(img_feats)
        x = self.depthnet(img_feats.flatten(0, 1))                             # (B*N, D + C, h, w)
        return self.downsample(self.lift_splat(x, calibration))


@MODELS.register_module()
class DepthLSSTransform(BaseViewTransform):
    """Depth and context from the camera features and the depths of the LiDAR points.

    See `BaseViewTransform` for the arguments.
    """

    def __init__(self, *, in_channels: int, out_channels: int, image_size: Sequence[int],
                 feature_size: Sequence[int], xbound: Sequence[float], ybound: Sequence[float],
                 zbound: Sequence[float], dbound: Sequence[float], downsample: int = 1) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, image_size=image_size,
            feature_size=feature_size, xbound=xbound, ybound=ybound, zbound=zbound,
            dbound=dbound, downsample=downsample)
        encoded = tuple(-(-size // DEPTH_STRIDE) for size in self.image_size)
        if encoded != self.feature_size:
            raise ConfigError(f'DepthLSSTransform needs features at 1/{DEPTH_STRIDE} of the image: '
                              f'{encoded} for image_size={self.image_size}, but feature_size is '
                              f'{self.feature_size}')
        self.dtransform = nn.Sequential(
            *_conv(1, 8, 1), *_conv(8, 32, 5, stride=4),
            *_conv(32, DEPTH_CHANNELS, 5, stride=2))
        self.depthnet = nn.Sequential(
            *_conv(in_channels + DEPTH_CHANNELS, in_channels, 3),
            *_conv(in_channels, in_channels, 3),
            nn.Conv2d(in_channels, self.num_bins + out_channels, 1))

    def forward(self, img_feats: Tensor, points: Optional[Sequence[Tensor]],
                calibration: Calibration) -> Tensor:
        """Transform camera features into a BEV map.

        Args:
            img_feats: (B, N, C, h, w).
            points: B clouds (P, 3 or more) in the augmented LiDAR frame, metres; not modified.
            calibration: of the B samples.

        Returns:
            (B, C, X, Y).
        """
        self.check_features(img_feats)
        if points is None:
            raise DataError('DepthLSSTransform draws depth from LiDAR points, but the batch has '
                            'none: load points in the pipeline, or use LSSTransform')
        depth = depth_maps(points, lidar2img=calibration.lidar2img,
                           img_aug_matrix=calibration.img_aug_matrix,
                           lidar_aug_matrix=calibration.lidar_aug_matrix,
                           image_size=self.image_size)                         # (B, N, H, W)
        depth = self.dtransform(depth.flatten(0, 1)[:, None])                  # (B*N, 64, h, w)
        x = torch.cat([depth, img_feats.flatten(0, 1)], dim=1)
        return self.downsample(self.lift_splat(self.depthnet(x), calibration))
