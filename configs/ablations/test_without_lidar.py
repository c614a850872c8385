_base_ = '../phase4a_task_gca.py'

ablation = dict(question='The reference, tested without LiDAR', trained_as='gca_task_specific')
model = dict(drop_at_test=['lidar'])
