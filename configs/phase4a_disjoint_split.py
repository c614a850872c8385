# phase4a_task_gca on scenes of training and validation that share no street, as the official ones do:
#     python tools/make_disjoint_split.py --root-path data/nuscenes --out data/nuscenes/disjoint.json
#     python tools/create_data.py --root-path data/nuscenes --splits data/nuscenes/disjoint.json \
#         --info-prefix disjoint
_base_ = './phase4a_task_gca.py'

val_infos = 'disjoint_infos_val.pkl'
train_dataloader = dict(dataset=dict(ann_file='disjoint_infos_train.pkl'))
val_dataloader = dict(dataset=dict(ann_file=val_infos))
test_dataloader = val_dataloader
val_evaluator = [
    dict(_base_.val_evaluator[0], ann_file=_base_.data_root + val_infos), _base_.val_evaluator[1]
]
test_evaluator = val_evaluator
