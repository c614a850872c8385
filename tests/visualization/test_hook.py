from typing import List

import numpy as np
import pytest
import torch
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.visualization.hook import (
    BEVFusionVisualizationHook,
    evenly_spaced,
    map_view,
    picture_name,
)
from mmdet3d.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .conftest import CLASSES, MAP_CLASSES


class Samples(BaseDataset):
    """A dataset over samples that are finished already."""

    def __init__(self, samples: list) -> None:
        self.samples = samples
        super().__init__(metainfo=dict(classes=CLASSES, map_classes=MAP_CLASSES),
                         serialize_data=False)

    def load_data_list(self) -> List[dict]:
        return [dict(sample_idx=sample.sample_idx, token=sample.token, sample=sample)
                for sample in self.samples]


class Echo(BaseModel):
    """Predicts what the dataset holds."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def test_step(self, data: list) -> list:
        return [item['sample'] for item in data]


def test_run(samples: list, hook: BEVFusionVisualizationHook, work_dir: str) -> Runner:
    loader = DataLoader(Samples(samples), batch_size=2, collate_fn=list)
    runner = Runner(model=Echo(), work_dir=work_dir, test_dataloader=loader, test_cfg=dict(),
                    test_evaluator=[], custom_hooks=[hook], default_hooks=dict(checkpoint=None),
                    experiment_name=f'viz{np.random.randint(1 << 30)}')
    runner.test()
    return runner


test_run.__test__ = False


def test_pictures_of_the_chosen_samples(make_sample, tmp_path):
    samples = [make_sample(index) for index in range(5)]
    hook = HOOKS.build(dict(type='BEVFusionVisualizationHook', out_dir=str(tmp_path / 'show'),
                            num_samples=2))
    test_run(samples, hook, str(tmp_path))
    names = sorted(path.name for path in (tmp_path / 'show').iterdir())
    assert names == ['000001_token1.png', '000003_token3.png']

    kept = (tmp_path / 'show' / names[0]).read_bytes()
    again = BEVFusionVisualizationHook(out_dir=tmp_path / 'show', num_samples=2)
    with pytest.raises(ConfigError, match='choose another'):
        test_run(samples, again, str(tmp_path))
    assert (tmp_path / 'show' / names[0]).read_bytes() == kept


@pytest.mark.parametrize('total, count, expected', [
    (6, 3, [1, 3, 5]), (100, 4, [12, 37, 62, 87]), (2, 3, [0, 1]), (1, 1, [0]), (0, 3, [])])
def test_evenly_spaced(total, count, expected):
    assert evenly_spaced(total, count).tolist() == expected


def test_picture_name():
    assert picture_name(12, 'abc') == '000012_abc.png'
    assert picture_name(12, '') == '000012.png'


def test_the_view_is_what_the_map_masks_cover():

    class Masks:
        xbound, ybound = [-30., 30., 0.5], [-20., 40., 0.5]

    assert map_view([object(), Masks()]) == (-30., -20., 30., 40.)
    assert map_view([object()]) is None


@pytest.mark.parametrize('wrong', [dict(num_samples=0), dict(score_threshold=1.5),
                                   dict(map_threshold=-0.1)])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BEVFusionVisualizationHook(out_dir='show', **wrong)
