# phase4a_task_gca at toy sizes: adds to mini/phase3_enhanced_seg what the full one adds to its own,
# for as many epochs as the demo has time for.
_base_ = './phase3_enhanced_seg.py'

max_epochs = 6

model = dict(
    task_gca=dict(mode='task_specific', in_channels={{_base_.bev_channels}}, reduction=4))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
