# det_only with the original's data: classes balanced, objects pasted until the last five epochs.
_base_ = './det_only.py'

train_pipeline = [
    steps for step in _base_.train_pipeline
    for steps in ([step, _base_.object_sample] if step['type'] == 'LoadAnnotations3D' else [step])
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SeededCBGSDataset',
        dataset=dict(_base_.train_dataloader.dataset, pipeline=train_pipeline)))
