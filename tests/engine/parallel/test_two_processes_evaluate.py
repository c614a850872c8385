"""`tools/test.py` in two processes leaves what it leaves in one, also with views and failures."""
import functools
import json
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
from processes import one_thread, start_group
from torch import nn
from untrained_mini import write_untrained_mini

from bevfusion_enhanced.engine.commands.evaluate import EvaluateOptions, evaluate

SAMPLES = 3  # two processes get two each, so one of them comes twice
FLAGS = {'plain': {}, 'with views and failures': dict(tta=True, corrupt=('cameras=2', 'beams=4'))}
MORE = """
custom_imports = None
env_cfg = dict(dist_cfg=dict(backend='gloo'))
tta_pipeline = [*test_pipeline[:-2], dict(type='TestTimeAug', transforms=[
    [dict(type='BEVView'), dict(type='BEVView', flip_x=True)],
    *[[step] for step in test_pipeline[-2:]]])]
tta_model = dict(type='BEVFusionTTAModel', map_scope=[_base_.map_bound, _base_.map_bound])
"""


def raise_heatmaps(model: nn.Module) -> None:
    """For boxes above the threshold."""
    for name, bias in model.named_parameters():
        if 'heatmap' in name and name.endswith('bias'):
            nn.init.ones_(bias)


@pytest.fixture(scope='module')
def folder(mini_nuscenes, tmp_path_factory) -> Path:
    """The mini config, and untrained weights whose boxes and maps are not empty."""
    folder = tmp_path_factory.mktemp('two_tests')
    write_untrained_mini(folder, mini_nuscenes, indices=SAMPLES, more=MORE, change=raise_heatmaps)
    return folder


def options(folder: Path, name: str, *, launcher: str, **flags: Any) -> EvaluateOptions:
    return EvaluateOptions(
        config=str(folder / 'mini.py'), checkpoint=str(folder / 'a.pth'), launcher=launcher,
        work_dir=str(folder / name), overrides=[f'experiment_name={name}'], **flags)


def left_by(folder: Path) -> Dict[str, Any]:
    """The metrics and the results of a test."""
    metrics, = folder.glob('*/metrics.json')
    results = metrics.parent / 'results'
    with np.load(results / 'map_results.npz') as file:
        cells = dict(zip(file['tokens'].tolist(), file['histograms'], strict=True))
    return dict(metrics=json.loads(metrics.read_text()), cells=cells, boxes=json.loads(
        (results / 'results_nusc.json').read_text())['results'])


@pytest.mark.parametrize('flags', FLAGS.values(), ids=FLAGS.keys())
def test_two_processes_leave_what_one_does(folder, flags):
    name = 'views' if flags else 'plain'
    with one_thread():
        evaluate(options(folder, f'{name}_one', launcher='none', **flags))
        group = start_group(functools.partial(evaluate, options(
            folder, f'{name}_two', launcher='pytorch', **flags)), folder / f'{name}_out', count=2)
        codes = [child.wait() for child in group]
    assert codes == [0, 0], '\n'.join(child.text()[-3000:] for child in group)
    one, two = (left_by(folder / f'{name}_{count}') for count in ('one', 'two'))
    assert two['metrics'].keys() == one['metrics'].keys() > {'object/NDS', 'map/mean/iou@max'}
    for key, value in one['metrics'].items():
        assert two['metrics'][key] == pytest.approx(value, abs=1e-6), key
    assert len(one['cells']) == len(one['boxes']) == SAMPLES
    assert two['cells'].keys() == one['cells'].keys() and two['boxes'].keys() == one['boxes'].keys()
    for token, counted in one['cells'].items():
        np.testing.assert_array_equal(two['cells'][token], counted)
        assert len(two['boxes'][token]) == len(one['boxes'][token]) > 0
