"""Datasets, their transforms and info files; importing registers the dataset and the transforms."""
from bevfusion_enhanced.datasets import transforms
from bevfusion_enhanced.datasets.class_balance import SeededCBGSDataset
from bevfusion_enhanced.datasets.nuscenes_dataset import NuScenesMultiTaskDataset

__all__ = ['NuScenesMultiTaskDataset', 'SeededCBGSDataset', 'transforms']
