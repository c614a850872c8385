# phase4a_task_gca at toy sizes: adds to mini/phase3_enhanced_seg what the full one adds to its own.
_base_ = './phase3_enhanced_seg.py'

model = dict(
    task_gca=dict(mode='task_specific', in_channels={{_base_.bev_channels}}, reduction=4))
