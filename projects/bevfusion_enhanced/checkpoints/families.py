"""What other kind of model a checkpoint is of, guessed from names: only to refuse it in words."""
import re
from typing import Collection, Optional

# The first whose every pattern is found at the start of some name.
_FAMILIES = (
    ('BEVFormer or a detector built on it', (r'pts_bbox_head\.transformer\.', r'img_backbone\.')),
    ('a detector of OpenPCDet', (r'(backbone_3d|map_to_bev_module|vfe|dense_head)\.',
                                 r'(backbone_2d|dense_head)\.')),
    ('another detector of MMDetection3D', (r'pts_(bbox_head|voxel_encoder|middle_encoder)\.',)),
    ('another detector of MMDetection3D', (r'(voxel_encoder|middle_encoder)\.', r'bbox_head\.')),
    ('an image detector of MMDetection', (r'(rpn_head|roi_head|bbox_head)\.', r'backbone\.')),
    ('an image detector of Detectron2', (r'(proposal_generator|roi_heads)\.', r'backbone\.')),
    ('Lift, Splat, Shoot', (r'camencode\.', r'bevencode\.')),
    ('a YOLO', (r'model\.\d+\.(conv|cv1|m)\.', r'model\.0\.conv\.')),
    ('a diffusion model', (r'(model\.diffusion_model|first_stage_model|down_blocks|unet)\.',)),
    ('a language model', (r'(bert|roberta|transformer\.h|model\.layers\.\d+\.self_attn|lm_head'
                          r'|model\.embed_tokens|gpt_neox|embed_tokens)\.',)),
    ('a CLIP', (r'visual\.', r'(transformer\.resblocks|token_embedding|text)\.')),
    ('a ResNet', (r'(backbone\.|encoder\.)?layer1\.0\.conv1\.', r'(backbone\.|encoder\.)?conv1\.')),
    ('a Vision Transformer', (r'(backbone\.|encoder\.)?blocks\.0\.attn\.qkv\.',)),
    ('a Swin Transformer', (r'(backbone\.)?(layers|stages)\.0\.blocks\.0\.attn\.',)),
    ('a ConvNeXt', (r'(backbone\.)?stages\.0\.(blocks\.)?0\.(conv_dw|depthwise_conv|gamma)',)),
    ('an EfficientNet', (r'(conv_stem|features\.1\.0\.block|_blocks\.0\.)',)),
    ('a VGG', (r'features\.0\.weight', r'classifier\.6\.')),
)


def family_of(names: Collection[str]) -> Optional[str]:
    """The kind of model that names of tensors remind of, with its article; None for no idea."""
    for family, patterns in _FAMILIES:
        if all(any(re.match(pattern, name) for name in names) for pattern in patterns):
            return family
    return None
