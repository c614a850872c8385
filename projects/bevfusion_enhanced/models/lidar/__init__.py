"""The LiDAR branch: voxelization and the sparse encoder."""
from .encoder import LidarEncoder
from .sparse_encoder import BEVFusionSparseEncoder
from .voxelization import Voxelization

__all__ = ['BEVFusionSparseEncoder', 'LidarEncoder', 'Voxelization']
