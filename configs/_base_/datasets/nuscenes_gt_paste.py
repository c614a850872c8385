# nuscenes.py, with objects of a GT database pasted into the scans of the first epochs:
#     python tools/create_data.py --root-path data/nuscenes --gt-database
# The images do not show them, so a model with cameras needs its last epochs without (five of twenty).
_base_ = './nuscenes.py'

train_pipeline = [
    steps for step in _base_.train_pipeline
    for steps in ([step, _base_.object_sample] if step['type'] == 'LoadAnnotations3D' else [step])
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
