# Detection alone; neither maps nor their masks are read.
_base_ = './phase1_baseline.py'

model = dict(heads=dict(map=None), loss_scale=dict(_delete_=True, object=1.0))

train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'LoadBEVMapMasks']
test_pipeline = [step for step in _base_.test_pipeline if step['type'] != 'LoadBEVMapMasks']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [
    evaluator for evaluator in _base_.val_evaluator if evaluator['type'] != 'BEVMapIoUMetric'
]
test_evaluator = val_evaluator
