# phase1_baseline, trained twice as long: what the later phases gain beyond more training.
_base_ = './phase1_baseline.py'

max_epochs = 40

param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
