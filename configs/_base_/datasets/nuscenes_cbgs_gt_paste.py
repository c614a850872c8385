# Both: classes balanced by resampling, and objects pasted into the scans of the first epochs.
_base_ = './nuscenes_gt_paste.py'

train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='SeededCBGSDataset', dataset={{_base_.train_dataloader.dataset}}))
