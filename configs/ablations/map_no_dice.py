_base_ = '../phase4a_task_gca.py'

ablation = dict(question='No dice loss')
model = dict(heads=dict(map=dict(use_dice_loss=False)))
