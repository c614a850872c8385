"""Class-balanced resampling (CBGS; Zhu et al., 2019) that is the same wherever it is built."""
from typing import Any, List, Mapping, Optional, Sequence, Union

import numpy as np
from mmdet3d.datasets import CBGSDataset
from mmdet3d.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from bevfusion_enhanced.errors import ConfigError, DataError


@DATASETS.register_module()
class SeededCBGSDataset(CBGSDataset):
    """Each class occurs in about as many samples as any other.

    MMDetection3D's CBGSDataset draws the samples from the state that NumPy's generator happens to
    be in when the dataset is built: the processes of a training, and a training and its resumption,
    may then differ in the samples. Here a seed of its own decides. A class without a valid box is
    left out with a warning, where the original divides by zero.

    For a class with n of the N pairs of a sample and a class in it, N / C samples are drawn with
    replacement from the n (C classes that occur). Samples without a box are never drawn.

    Args:
        dataset: The dataset, or its config.
        seed: Seed of the draw.
        lazy_init: Draw later.
        pipeline: In place of the dataset's own. MMDetection3D's browse_dataset.py, which looks
            into its own CBGSDataset alone, sets it here.

    Raises:
        ConfigError: `pipeline` for a dataset that is built already.
        DataError: No sample has a valid box.
    """

    def __init__(self, dataset: Union[BaseDataset, Mapping[str, Any]], *, seed: int = 0,
                 lazy_init: bool = False, pipeline: Optional[Sequence[Any]] = None) -> None:
        self.seed = seed
        if pipeline is not None:
            if not isinstance(dataset, Mapping):
                raise ConfigError('SeededCBGSDataset.pipeline is for a dataset that is still a '
                                  'config; give the dataset its pipeline when it is built')
            dataset = {**dataset, 'pipeline': pipeline}
        super().__init__(dataset, lazy_init=lazy_init)

    def _get_sample_indices(self, dataset: BaseDataset) -> List[int]:
        classes = self.metainfo['classes']
        members: List[List[int]] = [[] for _ in classes]
        for index in range(len(dataset)):
            for label in dataset.get_cat_ids(index):
                if label >= 0:
                    members[label].append(index)
        absent = [name for name, indices in zip(classes, members, strict=True) if not indices]
        if len(absent) == len(classes):
            raise DataError(f'class-balanced sampling: none of the {len(dataset)} samples has a '
                            f'valid box of {list(classes)}, so no samples are left; take the '
                            'wrapper away or choose other classes')
        if absent:
            print_log(f'class-balanced sampling: no valid box of {absent}; they are left out',
                      logger='current', level=30)
        members = [indices for indices in members if indices]
        share = sum(len(indices) for indices in members) / len(members)
        generator = np.random.default_rng(self.seed)
        return np.concatenate([generator.choice(indices, int(share))
                               for indices in members]).tolist()
