"""Joining processes that have no GPU, which MMEngine's own start takes for granted."""
import os
import subprocess

from mmengine.config import Config

from ...errors import ConfigError

_PORT = '29500'  # torch's own default


def use_cpu_processes(config: Config, launcher: str) -> None:
    """Join the other processes of a training over gloo, and let gradients be exchanged there.

    Args:
        config: Changed in place.
        launcher: 'pytorch' (torchrun) or 'slurm' (srun): what started the processes.

    Raises:
        ConfigError: It did not start them, or the config asks for what only GPUs can do.
    """
    import torch
    if config.get('sync_bn'):
        raise ConfigError(f'sync_bn={config.sync_bn!r}: norms over several processes need GPUs, '
                          'and none was found; --cfg-options sync_bn=None leaves it out')
    if launcher == 'slurm':
        name_slurm_processes()
    if launcher not in ('pytorch', 'slurm') or 'RANK' not in os.environ:
        raise ConfigError(f'--launcher {launcher}: without a GPU only processes started by '
                          'torchrun or srun can be joined; use torchrun and --launcher pytorch')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    config.setdefault('model_wrapper_cfg', dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False)))


def name_slurm_processes() -> None:
    """Say in torch's environment variables what Slurm says in its own.

    Raises:
        ConfigError: This process was not started by srun, or the first node cannot be told.
    """
    try:
        rank, count = os.environ['SLURM_PROCID'], os.environ['SLURM_NTASKS']
        nodes = os.environ['SLURM_NODELIST']
    except KeyError as error:
        raise ConfigError(f'--launcher slurm: {error.args[0]} is not set; start the command with '
                          'srun') from None
    os.environ.setdefault('MASTER_PORT', _PORT)
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_host(nodes)
    os.environ.update(RANK=rank, WORLD_SIZE=count,
                      LOCAL_RANK=os.environ.get('SLURM_LOCALID', rank))


def _first_host(nodes: str) -> str:
    try:
        shown = subprocess.run(['scontrol', 'show', 'hostname', nodes], capture_output=True,
                               text=True, check=True)
        return shown.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ConfigError(f'--launcher slurm: scontrol cannot tell the hosts of {nodes} ({error}); '
                          'set MASTER_ADDR to the first of them') from error
