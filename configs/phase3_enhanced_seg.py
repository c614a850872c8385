# The enhanced map head: ASPP, channel and spatial attention, a classifier a class, deep supervision, dice.
_base_ = './phase1_baseline.py'

model = dict(
    heads=dict(
        map=dict(
            type='EnhancedBEVSegmentationHead',
            deep_supervision=True,
            aux_weight=0.4,
            use_dice_loss=True,
            dice_weight=0.5,
            focal_alpha=0.25,
            focal_gamma=2.0,
            decoder_channels=[256, 256, 128, 128])))
