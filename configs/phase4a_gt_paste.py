# phase4a_task_gca with objects of a GT database pasted into the scans of the first 15 of 20 epochs. The
# map and its truth stay; `object_sample=dict(only_on=..., map_root=...)` pastes where it fits the map.
_base_ = './phase4a_task_gca.py'

train_pipeline = [
    steps for step in _base_.train_pipeline
    for steps in ([step, _base_.object_sample] if step['type'] == 'LoadAnnotations3D' else [step])
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
