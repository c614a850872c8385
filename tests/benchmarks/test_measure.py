"""Rules of the benchmarks; no test has a time limit."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bevfusion_enhanced.benchmarks import mmdetection3d, runner
from bevfusion_enhanced.benchmarks.catalogue import BENCHMARKS, find
from bevfusion_enhanced.benchmarks.measure import (
    Machine,
    Measurement,
    check_equal,
    exponent,
    peak_growth_mb,
    scaling,
)
from bevfusion_enhanced.benchmarks.names import NAMES
from bevfusion_enhanced.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_every_name_has_a_benchmark():
    assert list(NAMES) == list(BENCHMARKS)
    assert all(callable(find(name)) for name in NAMES)


@pytest.mark.parametrize('power', [0.0, 1.0, 2.0])
def test_exponent(power):
    sizes = [10, 30, 100]
    assert exponent(sizes, [3 * size ** power for size in sizes]) == pytest.approx(power)


def test_scaling_calls_every_size():
    called = []
    table = scaling('things', [1, 2], lambda size: lambda: called.append(size), repeats=2)
    assert called == [1, 1, 1, 2, 2, 2]  # one is not counted
    assert table['sizes'] == [1, 2] and len(table['ms']) == 2


def test_the_bound_is_the_larger_one():
    machine = Machine(operations_per_second=1e9, bytes_per_second=1e8, bf16_per_second=1.0)
    measurement = Measurement(ours_ms=1, conditions='', operations=2e6, traffic=1e6)
    assert measurement.bound_ms(machine) == pytest.approx(10)
    assert Measurement(ours_ms=1, conditions='').bound_ms(machine) is None


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux counts this')
def test_peak_memory_is_that_of_the_call():
    growth = peak_growth_mb(lambda: torch.ones(20_000_000))
    assert growth == pytest.approx(80, rel=0.2)


def test_different_outputs_are_not_timed():
    with pytest.raises(AssertionError):
        check_equal(torch.zeros(3), torch.ones(3))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match='nothing_such'):
        runner.check_names(['bev_pool', 'nothing_such'], list(NAMES))
    assert runner.check_names(['voxelize', 'bev_pool'], list(NAMES)) == ['bev_pool', 'voxelize']


def test_what_needs_a_checkout_is_left_out_or_refused(tmp_path):
    names = ['bev_pool', 'mmdetection3d_step']
    assert runner.without_checkout(names, chosen=[]) == ['bev_pool']
    with pytest.raises(ConfigError, match='mmdetection3d_step: needs --mmdetection3d DIR'):
        runner.without_checkout(names, chosen=names)
    with pytest.raises(ConfigError, match='has no projects/BEVFusion'):
        runner.check_checkout(tmp_path)
    (tmp_path / 'projects/BEVFusion/bevfusion').mkdir(parents=True)
    runner.check_checkout(tmp_path)


def test_pooling_by_segments_stands_in_for_the_compiled_one():
    x = torch.randn(5, 3)
    cells = torch.tensor([[0, 1, 0, 0]] * 2 + [[1, 0, 0, 0]] * 3)                 # x, y, z, sample
    pooled = mmdetection3d._pool(x, cells, torch.tensor([2, 3]), torch.tensor([0, 2]), 1, 1, 2, 2)
    assert pooled.shape == (1, 1, 2, 2, 3)
    torch.testing.assert_close(pooled[0, 0, 0, 1], x[:2].sum(0))
    torch.testing.assert_close(pooled[0, 0, 1, 0], x[2:].sum(0))
    back = mmdetection3d._spread_gradient(pooled, cells, torch.tensor([2, 3]),
                                          torch.tensor([0, 2]), 1, 1, 2, 2)
    torch.testing.assert_close(back[1], pooled[0, 0, 0, 1])


def test_hard_voxelization_keeps_the_first_points_of_each_voxel():
    points = torch.tensor([[0.5, 0.5, 0.5, 7], [9, 0, 0, 1], [0.6, 0.1, 0, 8], [1.5, 0, 0, 2],
                           [0.7, 0.2, 0, 9]])
    voxels, coords, counts = torch.zeros(4, 2, 4), torch.zeros(4, 3).int(), torch.zeros(4).int()
    count = mmdetection3d._hard_voxelize(points, voxels, coords, counts, [1, 1, 1],
                                         [0, 0, 0, 2, 2, 2], 2, 4, 3, True)
    assert count == 2
    assert coords[:2].tolist() == [[0, 0, 0], [1, 0, 0]] and counts[:2].tolist() == [2, 1]
    assert voxels[0, :, 3].tolist() == [7, 8] and voxels[1, 0, 3] == 2


def test_the_command_measures_and_writes(tmp_path):
    table, picture = tmp_path / 'table.json', tmp_path / 'picture.png'
    done = subprocess.run(
        [sys.executable, 'tools/benchmark.py', '--only', 'box_decoding', '--threads', '1',
         '--json', str(table), '--png', str(picture)],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row, = json.loads(table.read_text())
    assert set(row) == {'name', 'ours_ms', 'reference_ms', 'ratio', 'bound_ms', 'peak_mb'}
    assert row['name'] == 'box_decoding' and row['ours_ms'] > 0
    assert row['ratio'] == pytest.approx(row['reference_ms'] / row['ours_ms'], rel=1e-2)
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_the_tables_for_people(tmp_path):
    table = {'size': 'points', 'sizes': [1, 10], 'ms': [1.0, 9.0], 'exponent': 0.95,
             'exponent_at_the_end': 0.95}
    report = runner.Report(
        machine=dict(operations_per_second=1e9, bf16_per_second=1e9, bytes_per_second=1e9),
        threads=2, rows=[
            runner.Row('bev_pool', 1.5, 30.0, 20.0, 0.5, 12.0, conditions='some points'),
            runner.Row('scaling_points', 9.0, None, None, None, None, details={'all': table})])
    runner.write_markdown(report, tmp_path / 'page.md')
    runner.draw(report, tmp_path / 'page.png')
    page = (tmp_path / 'page.md').read_text()
    assert '| bev_pool | 1.5 | 30 | 20 | 0.5 | 12 |' in page
    assert 'points 1: 1 ms, 10: 9 ms; exponent 0.95' in page
