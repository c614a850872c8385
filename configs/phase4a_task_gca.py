# Task-specific global context attention: 2 x 131,072 parameters before the heads.
_base_ = './phase3_enhanced_seg.py'

model = dict(
    task_gca=dict(mode='task_specific', in_channels={{_base_.bev_channels}}, reduction=4))
