"""The words of nuScenes that data, metrics and configs share: classes, map layers, cameras."""
from typing import Dict, Tuple

DETECTION_CLASSES: Tuple[str, ...] = (
    'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle',
    'pedestrian', 'traffic_cone')
"""The ten detection classes in BEVFusion's order; labels index it."""

INFO_CLASSES: Tuple[str, ...] = (
    'car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle', 'motorcycle',
    'pedestrian', 'traffic_cone', 'barrier')
"""The same classes in the order that labels in info files index (MMDetection3D's)."""

MAP_LAYERS: Dict[str, Tuple[str, ...]] = {
    'drivable_area': ('drivable_area',),
    'drivable_area*': ('road_segment', 'lane'),
    'ped_crossing': ('ped_crossing',),
    'walkway': ('walkway',),
    'stop_line': ('stop_line',),
    'carpark_area': ('carpark_area',),
    'divider': ('road_divider', 'lane_divider'),
}
"""Map class -> the layers of the vector map whose union it is."""

MAP_CLASSES: Tuple[str, ...] = (
    'drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider')
"""The six map classes in BEVFusion's order."""

POLYGON_LAYERS: Tuple[str, ...] = (
    'drivable_area', 'road_segment', 'lane', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area')

LINE_LAYERS: Tuple[str, ...] = ('road_divider', 'lane_divider')

CAMERAS: Tuple[str, ...] = (
    'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT',
    'CAM_BACK_RIGHT')
"""The six cameras in the order of MMDetection3D's info files."""
