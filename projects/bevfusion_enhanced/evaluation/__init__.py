"""Metrics of both tasks; importing registers them."""
from bevfusion_enhanced.evaluation.bev_map_iou_metric import BEVMapIoUMetric
from bevfusion_enhanced.evaluation.nuscenes_detection_metric import NuScenesDetectionMetric

__all__ = ['BEVMapIoUMetric', 'NuScenesDetectionMetric']
