_base_ = '../phase4a_task_gca.py'

ablation = dict(question='No deep supervision of the map head')
model = dict(heads=dict(map=dict(deep_supervision=False)))
