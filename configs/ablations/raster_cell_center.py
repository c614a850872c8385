_base_ = '../phase4a_task_gca.py'

ablation = dict(question='Map labels at the centres of their cells, in training and in testing')
centred = dict(LoadBEVMapMasks=dict(raster='cell_center'))
train_pipeline = [dict(step, **centred.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **centred.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
