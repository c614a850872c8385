_base_ = '../phase4a_task_gca.py'

ablation = dict(question='A BEV decoder for each task')
model = dict(decoder_per_task=True)
