"""The nested parts of a TransFusion head's config, as records that refuse unknown keys.

Lengths are metres; a cell is one pixel of the BEV map, `voxel_size * out_size_factor` wide.
"""
from dataclasses import MISSING, dataclass, fields
from typing import Dict, Mapping, Optional, Sequence, Tuple, Type, TypeVar

from bevfusion_enhanced.errors import ConfigError

Options = TypeVar('Options')

# Small objects stand closer together than the window of the heatmap's maximum is wide: pedestrian
# and traffic_cone of nuScenes, pedestrian and cyclist of Waymo, as in the published models.
NMS_FREE_CLASSES = {'nuScenes': (8, 9), 'Waymo': (1, 2)}


def read_options(cls: Type[Options], config: Mapping, where: str) -> Options:
    """Build the record `cls` from `config`.

    Args:
        cls: a dataclass.
        config: its fields by name.
        where: what the config is called in a message.

    Raises:
        ConfigError: for an unknown or a missing key.
    """
    known = {f.name: f.default is MISSING for f in fields(cls)}
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ConfigError(f'{where} does not know {unknown}; it knows {sorted(known)}')
    missing = sorted(name for name, needed in known.items() if needed and name not in config)
    if missing:
        raise ConfigError(f'{where} needs {missing}')
    return cls(**config)


@dataclass(frozen=True)
class AttentionOptions:
    """Multi-head attention: channels, heads, and the share of weights dropped while training."""

    embed_dims: int
    num_heads: int
    dropout: float = 0.0


@dataclass(frozen=True)
class FeedForwardOptions:
    """The two-layer perceptron after the attention."""

    embed_dims: int
    feedforward_channels: int
    num_fcs: int = 2
    ffn_drop: float = 0.0
    act_cfg: Optional[Dict] = None


@dataclass(frozen=True)
class PositionOptions:
    """The learned position embedding: coordinates in, channels out."""

    num_pos_feats: int
    input_channel: int = 2


@dataclass(frozen=True)
class TrainOptions:
    """`train_cfg`: the grid, how proposals are matched, and how the heatmap's truth is drawn.

    Attributes:
        gaussian_overlap: IoU that a box keeps whose corners are off by the Gaussian's radius.
        min_radius: smallest radius, in cells.
        pos_weight: weight of matched proposals in the classification loss; 1 where not positive.
        code_weights: weight of each element of the box code in the regression loss.
    """

    point_cloud_range: Sequence[float]
    grid_size: Sequence[int]
    voxel_size: Sequence[float]
    out_size_factor: int
    assigner: Dict
    code_weights: Sequence[float]
    gaussian_overlap: float = 0.1
    min_radius: int = 2
    pos_weight: float = -1
    dataset: str = 'nuScenes'


@dataclass(frozen=True)
class TestOptions:
    """`test_cfg`: the grid, and how duplicates of the classes without heatmap NMS are removed.

    Attributes:
        nms_type: None, 'rotate' (IoU on the ground) or 'circle' (distance between centres).
        nms_threshold: IoU above which, or metres within which, a box of lower score is dropped; by
            default 0.175, or 0.418 metres: the published models compare the squared distance
            with 0.175.
    """

    __test__ = False  # not a test class of pytest

    grid_size: Sequence[int]
    out_size_factor: int
    voxel_size: Sequence[float]
    pc_range: Sequence[float]
    dataset: str = 'nuScenes'
    nms_type: Optional[str] = None
    nms_threshold: Optional[float] = None

    def __post_init__(self) -> None:
        """Check the choice of suppression."""
        if self.nms_type not in (None, 'rotate', 'circle'):
            raise ConfigError("test_cfg.nms_type must be None, 'rotate' or 'circle', got "
                              f'{self.nms_type!r}')

    @property
    def map_size(self) -> Tuple[int, int]:
        """Cells of the BEV map along x and y."""
        return (self.grid_size[0] // self.out_size_factor,
                self.grid_size[1] // self.out_size_factor)


def check_same_grid(**grids: Tuple[Sequence[float], Sequence[float], int]) -> None:
    """Check that each (lower range, voxel size, out_size_factor) says the same in x and y.

    Raises:
        ConfigError: naming the two that differ.
    """
    plain = {name: (tuple(low[:2]), tuple(voxel[:2]), factor)
             for name, (low, voxel, factor) in grids.items()}
    (first, expected), *others = plain.items()
    for name, grid in others:
        if grid != expected:
            raise ConfigError(f'{name} of the TransFusion head says (range, voxel size, factor) = '
                              f'{grid}, but {first} says {expected}')


def choose_nms_free_classes(given: Optional[Sequence[int]], dataset: str,
                            num_classes: int) -> Tuple[int, ...]:
    """Class ids that skip the heatmap's local maximum: those given, or the dataset's.

    Raises:
        ConfigError: for a dataset without a known choice, or ids that are no classes.
    """
    if given is None and dataset not in NMS_FREE_CLASSES:
        raise ConfigError(f'test_cfg.dataset {dataset!r} has no known nms_free_classes: give '
                          'nms_free_classes to the head, () for none')
    chosen = tuple(NMS_FREE_CLASSES[dataset] if given is None else given)
    if any(not 0 <= c < num_classes for c in chosen):
        raise ConfigError(f'nms_free_classes {chosen} are not all among the {num_classes} classes '
                          'of the head: give the ids that your class list has for them')
    return chosen
