"""Processes without a GPU find one another, whoever started them; rates follow the batch."""
import os

import pytest
import torch
from mmengine.config import Config
from processes import one_thread, start_group

from bevfusion_enhanced.engine.commands.train import TrainOptions, resolve
from bevfusion_enhanced.engine.parallel.process_group import name_slurm_processes, use_cpu_processes
from bevfusion_enhanced.errors import ConfigError

SCONTROL = '''#!/bin/sh
[ "$1 $2 $3" = "show hostname node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"
'''


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine that srun started a process on: rank 1 of 2 on two nodes."""
    program = tmp_path / 'scontrol'
    program.write_text(SCONTROL)
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, 'x')  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in (('PROCID', '1'), ('NTASKS', '2'), ('NODELIST', 'node[1-2]'),
                        ('LOCALID', '0')):
        monkeypatch.setenv(f'SLURM_{name}', value)


def test_slurms_variables_are_told_to_torch(slurm):
    name_slurm_processes()
    assert {name: os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')} == dict(
        RANK='1', WORLD_SIZE='2', LOCAL_RANK='0')
    assert os.environ['MASTER_ADDR'] == '127.0.0.1' and os.environ['MASTER_PORT'] == '29500'


def test_processes_of_srun_meet(slurm, tmp_path):
    def member() -> None:
        rank, port = os.environ.pop('RANK'), os.environ['MASTER_PORT']
        for name in ('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
            del os.environ[name]
        os.environ.update(SLURM_PROCID=rank, MASTER_PORT=port)
        config = Config()
        use_cpu_processes(config, 'slurm')
        total = torch.tensor(float(rank) + 1)
        torch.distributed.all_reduce(total)
        assert float(total) == 3 and torch.distributed.get_rank() == int(rank)
        assert config.model_wrapper_cfg.type == 'MMDistributedDataParallel'

    with one_thread():
        group = start_group(member, tmp_path / 'output', count=2)
        assert [child.wait() for child in group] == [0, 0], group[0].text() + group[1].text()


@pytest.mark.parametrize('launcher, config, variables, says', [
    ('slurm', {}, {'SLURM_PROCID': None}, 'SLURM_PROCID is not set; start the command with srun'),
    ('slurm', {}, {'SLURM_NODELIST': 'other'}, 'cannot tell the hosts of other .* MASTER_ADDR'),
    ('pytorch', {}, {}, 'torchrun or srun'),
    ('pytorch', dict(sync_bn='torch'), {'RANK': '0'}, 'sync_bn=.torch.* need GPUs'),
])
def test_what_cannot_be_joined_says_why(slurm, monkeypatch, launcher, config, variables, says):
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says):
        use_cpu_processes(Config(config), launcher)


def test_the_rate_follows_the_batch_only_where_asked(repo, tmp_path):
    path = str(repo / 'configs/phase4a_task_gca.py')
    plain = resolve(TrainOptions(config=path))
    scaled = resolve(TrainOptions(config=path, auto_scale_lr=True))
    assert not plain.auto_scale_lr.enable
    assert scaled.auto_scale_lr.to_dict() == dict(enable=True, base_batch_size=32)
    assert scaled.optim_wrapper.optimizer.lr == 2e-4  # for 32; the runner scales it
    other = tmp_path / 'other.py'
    other.write_text(f'_base_ = {path!r}\nauto_scale_lr = None\n')
    with pytest.raises(ConfigError, match='auto_scale_lr=dict'):
        resolve(TrainOptions(config=str(other), auto_scale_lr=True))


@pytest.mark.parametrize('enable, rate', [(True, 0.01 * 4 / 32), (False, 0.01)])
def test_the_runner_scales_the_rate(run, tmp_path, enable, rate):
    runner = run(tmp_path / 'run', 'auto_scale_lr.base_batch_size=32',
                 f'auto_scale_lr.enable={enable}')
    assert runner.optim_wrapper.param_groups[0]['lr'] == pytest.approx(rate)
