# phase4a_task_gca with samples of rare classes drawn more often (CBGS): an epoch is several times longer.
_base_ = './phase4a_task_gca.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='SeededCBGSDataset', dataset={{_base_.train_dataloader.dataset}}))
