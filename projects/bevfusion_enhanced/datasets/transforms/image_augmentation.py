"""Resize, crop, flip and rotation of camera images as one affine resample.

Pixel coordinates are continuous, u right and v down: pixel (column 0, row 0) covers [0, 1) x [0,
1). `img_aug_matrix` maps homogeneous (u, v, ., 1) of the image file to the augmented image, and is
what the resample uses, so it says exactly what was done.

Shapes: N cameras, H and W of the augmented image.
"""
from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from bevfusion_enhanced.datasets.encoded_image import EncodedImage, reduction_for
from bevfusion_enhanced.errors import ConfigError

_HALF_PIXEL = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=np.float64)


@dataclass(frozen=True)
class ImageAffine:
    """One draw of the augmentation: resize, then crop, then flip, then rotate about the centre.

    Attributes:
        resize: Factor on both sides of the image file.
        left: Column of the resized image at which the crop starts.
        top: Row of it.
        flip: Mirror left and right.
        rotate: Degrees, counter-clockwise as seen.
    """
    resize: float
    left: int
    top: int
    flip: bool = False
    rotate: float = 0.0

    def matrix(self, height: int, width: int) -> np.ndarray:
        """(3, 3) float64 map from the file's pixels to those of the (height, width) result."""
        crop = np.array([[self.resize, 0, -self.left], [0, self.resize, -self.top], [0, 0, 1]])
        flip = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) if self.flip else np.eye(3)
        cos, sin = np.cos(np.deg2rad(self.rotate)), np.sin(np.deg2rad(self.rotate))
        centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        return centre @ turn @ np.linalg.inv(centre) @ flip @ crop


@TRANSFORMS.register_module()
class ImageAug3D(BaseTransform):
    """Bring every camera's image to one size, in training with a random affine for each camera.

    Required keys: those of `LoadMultiViewImages`. Changed keys: `img` (list of N (H, W, 3) uint8),
    `img_aug_matrix` (N, 4, 4) float32.

    Args:
        final_dim: (height, width) of the result.
        resize_lim: Range of the resize factor, relative to the image file; its middle in
            evaluation.
        bot_pct_lim: Range of the share of the resized height that is cut off below.
        rot_lim: Range of the rotation, degrees.
        rand_flip: Mirror half of the images.
        is_train: Draw at random; else the middle of the ranges, no flip and no rotation.

    Raises:
        ConfigError: A range that is none.
    """

    def __init__(self, *, final_dim: Sequence[int], resize_lim: Sequence[float],
                 bot_pct_lim: Sequence[float] = (0.0, 0.0), rot_lim: Sequence[float] = (0.0, 0.0),
                 rand_flip: bool = False, is_train: bool = False) -> None:
        for name, limits in (('resize_lim', resize_lim), ('bot_pct_lim', bot_pct_lim),
                             ('rot_lim', rot_lim)):
            if len(limits) != 2 or limits[0] > limits[1]:
                raise ConfigError(f'{name} is {list(limits)}; expected [low, high]')
        if resize_lim[0] <= 0:
            raise ConfigError(f'resize_lim is {list(resize_lim)}; expected factors above 0')
        self.final_dim = tuple(final_dim)
        self.resize_lim = tuple(resize_lim)
        self.bot_pct_lim = tuple(bot_pct_lim)
        self.rot_lim = tuple(rot_lim)
        self.rand_flip = rand_flip
        self.is_train = is_train

    def transform(self, results: dict) -> dict:
        """Resample the images; see the class."""
        matrices = np.tile(np.eye(4), (len(results['img']), 1, 1))
        images = []
        for index, image in enumerate(results['img']):
            drawn = self.draw(*results['image_sizes'][index])
            affine = drawn.matrix(*self.final_dim)
            decoded = _plane(results['img_aug_matrix'][index])
            if isinstance(image, EncodedImage):
                reduction = reduction_for(drawn.resize)
                image = image.decode(reduction)
                decoded = np.diag([1 / reduction, 1 / reduction, 1]) @ decoded
            images.append(resample(image, affine @ np.linalg.inv(decoded), self.final_dim))
            matrices[index][:2, [0, 1, 3]] = affine[:2]
        results['img'] = images
        results['img_aug_matrix'] = matrices.astype(np.float32)
        return results

    def draw(self, height: int, width: int) -> ImageAffine:
        """The affine for an image file of this size."""
        if not self.is_train:
            resize, bottom, across = np.mean(self.resize_lim), np.mean(self.bot_pct_lim), 0.5
            flip, rotate = False, 0.0
        else:
            resize, bottom, rotate = (np.random.uniform(*limits) for limits in (
                self.resize_lim, self.bot_pct_lim, self.rot_lim))
            across = np.random.uniform()
            flip = self.rand_flip and np.random.rand() < 0.5
        left = int(across * max(0, int(width * resize) - self.final_dim[1]))
        top = int((1 - bottom) * int(height * resize)) - self.final_dim[0]
        return ImageAffine(resize=float(resize), left=left, top=top, flip=bool(flip),
                           rotate=float(rotate))


def resample(image: np.ndarray, affine: np.ndarray, final_dim: Sequence[int]) -> np.ndarray:
    """Bilinear resample of `image` through `affine`; what lies outside of it is black.

    An image that is shrunk to half or less is blurred first, over the pixels that fall into one.

    Args:
        image: (h, w, 3) uint8.
        affine: (3, 3) from its pixels to the result's.
        final_dim: (H, W).
    """
    shrink = 1 / np.sqrt(np.abs(np.linalg.det(affine[:2, :2])))
    window = 2 * int(round((shrink - 1) / 2)) + 1
    if window > 1:
        image = cv2.blur(image, (window, window))
    centred = np.linalg.inv(_HALF_PIXEL) @ affine @ _HALF_PIXEL
    height, width = final_dim
    return cv2.warpAffine(image, centred[:2], (width, height), flags=cv2.INTER_LINEAR)


def _plane(matrix: np.ndarray) -> np.ndarray:
    """The (3, 3) map of the image plane inside a (4, 4) `img_aug_matrix`."""
    plane = np.eye(3)
    plane[:2] = matrix[:2][:, [0, 1, 3]]
    return plane
