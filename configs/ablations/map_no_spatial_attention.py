_base_ = '../phase4a_task_gca.py'

ablation = dict(question='No spatial attention in the map head')
model = dict(heads=dict(map=dict(use_spatial_attention=False)))
