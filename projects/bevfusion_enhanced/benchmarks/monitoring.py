"""What watching the health of a training costs."""
from pathlib import Path
from typing import Any, Dict

from mmdet3d.registry import DATASETS
from torch.utils.data import Dataset

from bevfusion_enhanced.benchmarks import scene
from bevfusion_enhanced.benchmarks.measure import Measurement
from bevfusion_enhanced.benchmarks.whole_model import CONFIG, batch

ITERATIONS = 11
SAMPLES_OF_AN_EPOCH = 28_130  # of nuScenes' training split


@DATASETS.register_module()
class BenchmarkSamples(Dataset):
    """The same sample of full size, again and again."""

    def __init__(self) -> None:
        self._batch = batch()
        self.metainfo = dict(classes=[f'class{i}' for i in range(scene.CLASSES)],
                             map_classes=[f'map{i}' for i in range(6)])

    def __len__(self) -> int:
        """As many as an epoch of nuScenes."""
        return SAMPLES_OF_AN_EPOCH

    def __getitem__(self, index: int) -> Dict[str, Any]:
        """The sample, the inputs as the pipeline packs them."""
        inputs = {name: value[0] for name, value in self._batch['inputs'].items()}
        return dict(inputs=inputs, data_samples=self._batch['data_samples'][0].clone())


def health_hook() -> Measurement:
    """`HealthHook` in a training of the full model; the reference is the step without it."""
    from bevfusion_enhanced.engine.commands.health_benchmark import benchmark
    from bevfusion_enhanced.engine.configuration.config import load_config

    config = load_config(str(Path(__file__).parents[3] / CONFIG))
    config.train_dataloader = dict(
        batch_size=1, num_workers=0, dataset=dict(type='BenchmarkSamples'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'))
    result = benchmark(config, iterations=ITERATIONS)
    return Measurement(
        ours_ms=1e3 * (result.step + sum(cost.per_step for cost in result.costs)),
        reference_ms=1e3 * result.step,
        conditions='full model, batch 1, both heads, intervals of the default settings',
        details={'share_of_a_step': float(f'{result.share:.2g}'),
                 **{f'{cost.part}_ms': round(1e3 * cost.per_step, 2) for cost in result.costs}})
