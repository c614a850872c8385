# Parameters, gradients and moments dealt out over the GPUs, in place of a copy on each. Checkpoints stay
# whole files, which any other config loads. For torchrun or srun; with one process nothing changes.
# HealthHook leaves such a run. To be named beside any config: _base_ = ['../phase1_baseline.py', ...].
model_wrapper_cfg = dict(type='FullyShardedModel')
