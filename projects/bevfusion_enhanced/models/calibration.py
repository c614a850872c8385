"""The calibration of a batch of camera rigs, as one record.

Frames: camera (x right, y down, z forward, metres), LiDAR (x right, y forward, z up, metres),
pixel (u right, v down). Matrices act on column vectors and are named by direction. `cam2img`,
`cam2lidar` and `lidar2img` are those before augmentation; what augmentation did is in
`img_aug_matrix` (pixel before to pixel after) and `lidar_aug_matrix` (LiDAR before to after).

Shapes: B samples, N cameras.
"""
from dataclasses import dataclass, fields
from typing import Sequence, Union

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from bevfusion_enhanced.errors import DataError


@dataclass(frozen=True)
class Calibration:
    """Where every camera of a batch stands, and what augmentation did to its inputs; float32.

    Attributes:
        cam2img: (B, N, 4, 4) intrinsics.
        cam2lidar: (B, N, 4, 4) pose of each camera in the LiDAR frame.
        lidar2img: (B, N, 4, 4) LiDAR to pixel times depth.
        img_aug_matrix: (B, N, 4, 4) planar map of pixels.
        lidar_aug_matrix: (B, 4, 4) flips, rotation, scale and translation of the LiDAR frame.
    """

    cam2img: Tensor
    cam2lidar: Tensor
    lidar2img: Tensor
    img_aug_matrix: Tensor
    lidar_aug_matrix: Tensor

    @classmethod
    def from_samples(cls, samples: Sequence[BaseDataElement],
                     device: Union[str, torch.device] = 'cpu') -> 'Calibration':
        """Read the matrices from the samples' metainfo.

        Raises:
            DataError: a sample lacks one of them, or samples differ in their number of cameras.
        """
        return cls(**{field.name: _stack(samples, field.name).to(device)
                      for field in fields(cls)})

    def equals(self, other: 'Calibration') -> bool:
        """Whether both hold the same numbers on the same device."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return all(a.device == b.device and torch.equal(a, b) for a, b in pairs)


def _stack(samples: Sequence[BaseDataElement], name: str) -> Tensor:
    matrices = []
    for sample in samples:
        value = sample.metainfo.get(name)
        if value is None:
            raise DataError(
                f'sample {sample.metainfo.get("sample_idx", "?")} has no {name!r} in its metainfo; '
                'the cameras need it: add it to the meta keys of the pipeline\'s packing step')
        matrices.append(np.asarray(value, dtype=np.float32))
    shapes = sorted({m.shape for m in matrices})
    if len(shapes) > 1:
        raise DataError(f'{name!r} differs in shape between the samples of a batch: {shapes}; '
                        'every sample of a batch needs the same cameras')
    return torch.from_numpy(np.stack(matrices))
