"""How the parts of a model are called in each code base: functions of one name, and back.

Our names are those of the original BEVFusion, so they need no table. The detection head and the
encoders of MMDetection3D's BEVFusion compute the same under other names. Image backbones are Swin
Transformers under the names of MMDetection (ours too), of Swin's authors, or of timm.
"""
import re
from typing import Collection, Iterable, NamedTuple, Optional, Sequence, Tuple

CAMERA_BACKBONE = 'encoders.camera.backbone.'
TIMM_MODEL = f'{CAMERA_BACKBONE}model.'  # what TimmBackbone wraps

_MMDET3D = (
    ('img_backbone.', CAMERA_BACKBONE),
    ('img_neck.', 'encoders.camera.neck.'),
    ('view_transform.', 'encoders.camera.vtransform.'),
    ('pts_middle_encoder.', 'encoders.lidar.backbone.'),
    ('fusion_layer.', 'fuser.'),
    ('pts_backbone.', 'decoder.backbone.'),
    ('pts_neck.', 'decoder.neck.'),
    ('bbox_head.', 'heads.object.'),
)
_MMDET3D_LAYER = re.compile(r'(bbox_head\.decoder\.\d+\.)(.+)')
_OUR_LAYER = re.compile(r'(heads\.object\.decoder\.\d+\.)(.+)')
_LAYER = (
    ('self_attn.attn.', 'self_attn.'),
    ('cross_attn.attn.', 'multihead_attn.'),
    ('ffn.layers.0.0.', 'linear1.'),
    ('ffn.layers.1.', 'linear2.'),
    ('norms.0.', 'norm1.'),
    ('norms.1.', 'norm2.'),
    ('norms.2.', 'norm3.'),
)

_STAGE = re.compile(r'layers\.(\d+)\.(.+)')
_FLATTENED = re.compile(r'([a-z]+)_(\d+)\.')  # timm's feature extractor calls layers.0 layers_0
_SWIN_PARTS = (
    ('attn.', 'attn.w_msa.'),
    ('mlp.fc1.', 'ffn.layers.0.0.'),
    ('mlp.fc2.', 'ffn.layers.1.'),
)
_CLASSIFIER = ('head.', 'fc.', 'classifier.', 'norm.')
_DETECTOR = ('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'mask_head.')


def mmdet3d_to_native(name: str) -> str:
    """Our name of a tensor of MMDetection3D's BEVFusion; names that it lacks stay."""
    layer = _MMDET3D_LAYER.fullmatch(name)
    if layer:
        name = layer[1] + _replace_start(layer[2], _LAYER)
    return _replace_start(name, _MMDET3D)


def native_to_mmdet3d(name: str) -> str:
    """The inverse of `mmdet3d_to_native`."""
    layer = _OUR_LAYER.fullmatch(name)
    if layer:
        name = layer[1] + _replace_start(layer[2], _inverse(_LAYER))
    return _replace_start(name, _inverse(_MMDET3D))


def is_mmdet3d(names: Collection[str]) -> bool:
    """Whether any name is one that only MMDetection3D's BEVFusion has.

    `pts_backbone` and the like do not count: its other detectors use them too, with the axes of
    the map the other way round.
    """
    marks = ('view_transform.', 'fusion_layer.', 'bbox_head.heatmap_head.',
             'pts_middle_encoder.encoder_layers.')
    return any(name.startswith(marks) for name in names)


def is_ours(names: Collection[str]) -> bool:
    """Whether any name is one of ours or the original's."""
    marks = ('encoders.camera.', 'encoders.lidar.', 'fuser.', 'heads.object.', 'heads.map.',
             'decoder.backbone.', 'decoder.neck.', 'task_gca.')
    return any(name.startswith(marks) for name in names)


class ImageBackbone(NamedTuple):
    """A Swin Transformer found among names.

    Attributes:
        kind: 'mmdet', 'swin' (patches merged at the end of a stage; timm did too before 0.8) or
            'timm' (at the start of the next).
        prefix: What stands before each of its names.
    """

    kind: str
    prefix: str


def find_image_backbone(names: Collection[str]) -> Optional[ImageBackbone]:
    """The Swin Transformer that a file of an image model or detector holds, or None."""
    for prefix in ('', 'backbone.', 'encoder.'):
        if f'{prefix}stages.0.blocks.0.attn.w_msa.qkv.weight' in names:
            return ImageBackbone('mmdet', prefix)
        if f'{prefix}layers.0.blocks.0.attn.relative_position_bias_table' in names:
            at_start = (f'{prefix}layers.1.downsample.reduction.weight' in names
                        and f'{prefix}layers.0.downsample.reduction.weight' not in names)
            return ImageBackbone('timm' if at_start else 'swin', prefix)
    return None


def swin_to_mmdet(name: str, *, kind: str) -> str:
    """MMDetection's name of a Swin Transformer's tensor.

    Args:
        name: Without the backbone's prefix.
        kind: See `ImageBackbone`.
    """
    if name.startswith('patch_embed.proj.'):
        return name.replace('proj.', 'projection.', 1)
    stage = _STAGE.fullmatch(name)
    if not stage:
        return name
    index, rest = int(stage[1]), stage[2]
    if rest.startswith('downsample.'):
        return f'stages.{index - (kind == "timm")}.{rest}'
    block = re.fullmatch(r'(blocks\.\d+\.)(.+)', rest)
    if block:
        rest = block[1] + _replace_start(block[2], _SWIN_PARTS)
    return f'stages.{index}.{rest}'


def timm_names(target: str, *, kind: str) -> Tuple[str, ...]:
    """The names that a tensor of timm's feature extractor may have in a file of the whole model.

    Args:
        target: Its name in the extractor.
        kind: Which Swin Transformer the file holds, see `ImageBackbone`; anything else for
            another network.
    """
    plain = _FLATTENED.sub(r'\1.\2.', target, count=1)
    merging = re.fullmatch(r'layers\.(\d+)\.(downsample\..+)', plain)
    if merging and kind == 'swin':
        plain = f'layers.{int(merging[1]) - 1}.{merging[2]}'
    return (target, plain) if target != plain else (target,)


def is_classifier(name: str) -> bool:
    """Whether a name (without the backbone's prefix) belongs to an image classifier's end."""
    return name.startswith(_CLASSIFIER)


def is_detector_only(name: str) -> bool:
    """Whether a whole name belongs to an image detector, but not to its backbone."""
    return name.startswith(_DETECTOR)


def _inverse(table: Sequence[Tuple[str, str]]) -> Iterable[Tuple[str, str]]:
    return [(ours, theirs) for theirs, ours in table]


def _replace_start(name: str, table: Iterable[Tuple[str, str]]) -> str:
    """`name` with the first matching start of the table replaced."""
    for start, other in table:
        if name.startswith(start):
            return other + name[len(start):]
    return name
