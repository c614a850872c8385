# phase4a_task_gca with its parameters dealt out over the GPUs, and Swin's activations computed twice
# rather than kept: for less memory.
_base_ = ['./phase4a_task_gca.py', './_base_/strategies/fsdp.py']

model = dict(encoders=dict(camera=dict(backbone=dict(with_cp=True))))
