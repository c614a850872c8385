_base_ = '../phase4a_task_gca.py'

ablation = dict(question='No channel attention in the map head')
model = dict(heads=dict(map=dict(use_channel_attention=False)))
