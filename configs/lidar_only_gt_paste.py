# lidar_only with objects of a GT database pasted into the scans of the first 15 of 20 epochs.
_base_ = './lidar_only.py'

train_pipeline = [
    steps for step in _base_.train_pipeline
    for steps in ([step, _base_.object_sample] if step['type'] == 'LoadAnnotations3D' else [step])
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
