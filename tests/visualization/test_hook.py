from typing import List

import numpy as np
import pytest
import torch
from mmdet3d.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner
from sample_parts import CLASSES, MAP_CLASSES
from torch.utils.data import DataLoader

from bevfusion_enhanced.datasets.transforms.map_masks import LoadBEVMapMasks
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.visualization.hook import (
    BEVFusionVisualizationHook,
    evenly_spaced,
    map_view,
    picture_name,
)


class Samples(BaseDataset):
    """A dataset over samples that are finished already."""

    def __init__(self, samples: list, **info: object) -> None:
        self.samples, self.info = samples, info
        super().__init__(metainfo=dict(classes=CLASSES, map_classes=MAP_CLASSES),
                         serialize_data=False)

    def load_data_list(self) -> List[dict]:
        return [dict(sample_idx=sample.sample_idx, token=sample.token, sample=sample,
                     **self.info) for sample in self.samples]


class Echo(BaseModel):
    """Predicts what the dataset holds."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def test_step(self, data: list) -> list:
        return [item['sample'] for item in data]


def run_test(samples: list, hook: BEVFusionVisualizationHook, work_dir: str,
             **info: object) -> None:
    loader = DataLoader(Samples(samples, **info), batch_size=2, collate_fn=list)
    runner = Runner(model=Echo(), work_dir=work_dir, test_dataloader=loader, test_cfg=dict(),
                    test_evaluator=[], custom_hooks=[hook], default_hooks=dict(checkpoint=None),
                    experiment_name=f'viz{np.random.randint(1 << 30)}')
    runner.test()


def test_pictures_of_the_chosen_samples(make_sample, tmp_path):
    samples = [make_sample(index) for index in range(5)]
    hook = HOOKS.build(dict(type='BEVFusionVisualizationHook', out_dir=str(tmp_path / 'show'),
                            num_samples=2))
    run_test(samples, hook, str(tmp_path))
    names = sorted(path.name for path in (tmp_path / 'show').iterdir())
    assert names == ['000001_token1.png', '000003_token3.png']

    kept = (tmp_path / 'show' / names[0]).read_bytes()
    again = BEVFusionVisualizationHook(out_dir=tmp_path / 'show', num_samples=2)
    with pytest.raises(ConfigError, match='choose another'):
        run_test(samples, again, str(tmp_path))
    assert (tmp_path / 'show' / names[0]).read_bytes() == kept


@pytest.mark.parametrize('total, count, expected', [
    (6, 3, [1, 3, 5]), (100, 4, [12, 37, 62, 87]), (2, 3, [0, 1]), (1, 1, [0]), (0, 3, [])])
def test_evenly_spaced(total, count, expected):
    assert evenly_spaced(total, count).tolist() == expected


def test_picture_name():
    assert picture_name(12, 'abc') == '000012_abc.png'
    assert picture_name(12, '') == '000012.png'


def test_the_view_is_what_the_map_masks_cover(tmp_path):
    (tmp_path / 'maps' / 'expansion').mkdir(parents=True)
    masks = LoadBEVMapMasks(data_root=str(tmp_path), classes=MAP_CLASSES, xbound=[-30., 30., 0.5],
                            ybound=[-20., 40., 1.])
    assert map_view([object(), masks]) == (-30., -20., 30., 40.)
    assert map_view([object()]) is None


def test_truth_that_the_pipeline_did_not_pack_comes_from_the_dataset(make_sample, tmp_path):
    sample = make_sample()
    annotations = sample.pop('eval_ann_info')
    pictures = []
    for name, found in (('with', annotations), ('without', None)):
        hook = BEVFusionVisualizationHook(out_dir=tmp_path / name, num_samples=1)
        run_test([sample], hook, str(tmp_path), eval_ann_info=found)
        pictures.append((tmp_path / name / '000000_token0.png').read_bytes())
    sample.eval_ann_info = annotations
    hook = BEVFusionVisualizationHook(out_dir=tmp_path / 'packed', num_samples=1)
    run_test([sample], hook, str(tmp_path))
    packed = (tmp_path / 'packed' / '000000_token0.png').read_bytes()
    assert pictures[0] == packed and pictures[1] != packed


@pytest.mark.parametrize('wrong', [dict(num_samples=0), dict(score_threshold=1.5),
                                   dict(map_threshold=-0.1)])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BEVFusionVisualizationHook(out_dir='show', **wrong)
