# nuscenes.py, with the samples of rare classes drawn more often (CBGS); an epoch then has several times
# as many samples as there are key frames, so a schedule by epochs grows alike.
_base_ = './nuscenes.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='SeededCBGSDataset', dataset={{_base_.train_dataloader.dataset}}))
