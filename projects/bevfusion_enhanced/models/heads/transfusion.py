"""The 3D detection head: a heatmap proposes, a transformer looks again, boxes are regressed.

Boxes are (x, y, z, dx, dy, dz, yaw, vx, vy) in the LiDAR frame: metres, radians, z at the bottom.
Positions on the BEV map are in cells, along x (dimension 2 of the map) and y (dimension 3).
Shapes: B samples, C input channels, H hidden channels, K classes, X and Y cells of the BEV map,
L = X * Y, P proposals, S elements of a box code.
"""
from typing import Dict, List, NamedTuple, Optional, Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet3d.models.dense_heads.centerpoint_head import SeparateHead
from mmdet3d.registry import MODELS, TASK_UTILS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.dist import all_reduce, get_world_size
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.heads.base import TaskHead, TaskLosses
from bevfusion_enhanced.models.heads.transfusion_coder import BoxCode
from bevfusion_enhanced.models.heads.transfusion_options import (
    TestOptions,
    TrainOptions,
    check_same_grid,
    choose_nms_free_classes,
    read_options,
)
from bevfusion_enhanced.models.heads.transfusion_proposals import (
    cell_centers,
    local_maxima,
    propose,
)
from bevfusion_enhanced.models.heads.transfusion_suppression import without_duplicates
from bevfusion_enhanced.models.heads.transfusion_targets import (
    ProposalTargets,
    Truth,
    heatmap_targets,
    proposal_targets,
    read_truths,
)

# Logit of the share of cells that an untrained heatmap calls an object: 0.1, as in CenterPoint.
PRIOR_LOGIT = -2.19


class LayerOutputs(NamedTuple):
    """What one decoder layer says of P proposals: their `code` and class `logits` (B, K, P)."""

    code: BoxCode
    logits: Tensor


class TransFusionOutputs(NamedTuple):
    """Raw outputs of the head.

    Attributes:
        layers: of each decoder layer that is supervised, the last one last.
        dense_heatmap: (B, K, X, Y) logits.
        query_labels: (B, P) class under which each proposal was found.
        query_heatmap_score: (B, K, P) heatmap at the proposals, 0 where not a local maximum.
    """

    layers: List[LayerOutputs]
    dense_heatmap: Tensor
    query_labels: Tensor
    query_heatmap_score: Tensor


@MODELS.register_module()
class TransFusionHead(TaskHead):
    """Detect objects on the BEV map.

    Bai et al., 'TransFusion: Robust LiDAR-Camera Fusion for 3D Object Detection with
    Transformers', CVPR 2022, in the form that Liu et al., 'BEVFusion', ICRA 2023, give it.

    Args:
        in_channels: C.
        num_classes: K.
        bbox_coder: of the type TransFusionBBoxCoder.
        decoder_layer: of the type TransformerDecoderLayer.
        common_heads: (channels, convolutions) of center, height, dim, rot and, optionally, vel.
        test_cfg: fields of TestOptions.
        train_cfg: fields of TrainOptions; None for a head that only predicts.
        loss_cls: of the class of the proposals.
        loss_bbox: of their codes.
        loss_heatmap: of the dense heatmap.
        num_proposals: P.
        auxiliary: supervise every decoder layer, not only the last.
        hidden_channel: H.
        num_decoder_layers: how often the proposals look again.
        num_heatmap_convs: convolutions of the head that classifies the proposals.
        nms_kernel_size: odd width, in cells, of the window in which a proposal is the maximum.
        nms_free_classes: ids of classes without that window; None for those of test_cfg.dataset.
        bn_momentum: of all batch norms.

    Raises:
        ConfigError: for unknown fields, grids that differ, or sizes that do not fit together.
    """

    def __init__(self, *, in_channels: int, num_classes: int, bbox_coder: Dict,
                 decoder_layer: Dict, common_heads: Dict[str, Sequence[int]], test_cfg: Dict,
                 train_cfg: Optional[Dict] = None,
                 loss_cls: Optional[Dict] = None, loss_bbox: Optional[Dict] = None,
                 loss_heatmap: Optional[Dict] = None, num_proposals: int = 200,
                 auxiliary: bool = True, hidden_channel: int = 128, num_decoder_layers: int = 1,
                 num_heatmap_convs: int = 2, nms_kernel_size: int = 3,
                 nms_free_classes: Optional[Sequence[int]] = None,
                 bn_momentum: float = 0.1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_proposals = num_proposals
        self.auxiliary = auxiliary
        self.nms_kernel_size = nms_kernel_size
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self._read_configs(train_cfg, test_cfg, nms_free_classes)
        self._build_losses(loss_cls, loss_bbox, loss_heatmap)

        self.shared_conv = nn.Conv2d(in_channels, hidden_channel, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            ConvModule(hidden_channel, hidden_channel, 3, padding=1, norm_cfg=dict(type='BN2d')),
            nn.Conv2d(hidden_channel, num_classes, 3, padding=1))
        self.class_encoding = nn.Conv1d(num_classes, hidden_channel, 1)
        self.decoder = nn.ModuleList(
            MODELS.build(decoder_layer) for _ in range(num_decoder_layers))
        if self.decoder[0].embed_dims != hidden_channel:
            raise ConfigError(f'hidden_channel is {hidden_channel}, but decoder_layer has '
                              f'{self.decoder[0].embed_dims} channels: make embed_dims equal')
        outputs = dict(common_heads, heatmap=(num_classes, num_heatmap_convs))
        self.prediction_heads = nn.ModuleList(
            SeparateHead(hidden_channel, outputs, conv_cfg=dict(type='Conv1d'),
                         norm_cfg=dict(type='BN1d')) for _ in range(num_decoder_layers))
        self.register_buffer('bev_pos', cell_centers(self.test_cfg.map_size), persistent=False)
        self._initialise(bn_momentum)

    def _read_configs(self, train_cfg: Optional[Dict], test_cfg: Dict,
                      free_classes: Optional[Sequence[int]]) -> None:
        coder = self.bbox_coder
        test = read_options(TestOptions, test_cfg, 'test_cfg of the TransFusion head')
        grids = dict(bbox_coder=(coder.pc_range, coder.voxel_size, coder.out_size_factor),
                     test_cfg=(test.pc_range, test.voxel_size, test.out_size_factor))
        self.test_cfg, self.train_cfg, self.assigner = test, None, None
        if train_cfg is not None:
            train = read_options(TrainOptions, train_cfg, 'train_cfg of the TransFusion head')
            grids['train_cfg'] = (train.point_cloud_range, train.voxel_size, train.out_size_factor)
            if len(train.code_weights) != coder.code_size:
                raise ConfigError(f'code_weights must be {coder.code_size}, as code_size says, got '
                                  f'{len(train.code_weights)}')
            self.train_cfg = train
            self.assigner = TASK_UTILS.build(
                train.assigner, default_args=dict(point_cloud_range=train.point_cloud_range))
        check_same_grid(**grids)
        if self.nms_kernel_size % 2 == 0:
            raise ConfigError(f'nms_kernel_size must be odd, got {self.nms_kernel_size}')
        self.nms_free_classes = choose_nms_free_classes(free_classes, test.dataset,
                                                        self.num_classes)

    def _build_losses(self, loss_cls: Optional[Dict], loss_bbox: Optional[Dict],
                      loss_heatmap: Optional[Dict]) -> None:
        self.loss_cls = MODELS.build(loss_cls or dict(
            type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25))
        self.loss_bbox = MODELS.build(loss_bbox or dict(type='mmdet.L1Loss', loss_weight=0.25))
        self.loss_heatmap = MODELS.build(loss_heatmap or dict(type='mmdet.GaussianFocalLoss'))

    def _initialise(self, bn_momentum: float) -> None:
        for parameter in self.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in [self.heatmap_head[-1]] + [h.heatmap[-1] for h in self.prediction_heads]:
            nn.init.constant_(layer.bias, PRIOR_LOGIT)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = bn_momentum

    # ---- from the map to raw outputs

    def forward(self, bev: Tensor) -> TransFusionOutputs:
        """Propose and look again on `bev` (B, C, X, Y).

        Raises:
            ConfigError: when X and Y are not those of the config's grid.
        """
        if tuple(bev.shape[2:]) != self.test_cfg.map_size:
            raise ConfigError(f'the TransFusion head expects a BEV map of {self.test_cfg.map_size} '
                              f'cells (grid_size / out_size_factor), got {tuple(bev.shape[2:])}')
        features = self.shared_conv(bev)                                         # (B, H, X, Y)
        with torch.autocast(bev.device.type, enabled=False):
            dense_heatmap = self.heatmap_head(features.float())                  # (B, K, X, Y)
        scores = local_maxima(dense_heatmap.detach().sigmoid(), size=self.nms_kernel_size,
                              spared=self.nms_free_classes)                      # (B, K, L)
        labels, cells = propose(scores, count=self.num_proposals)                # (B, P) each
        tokens = features.flatten(2).transpose(1, 2)                             # (B, L, H)
        if tokens.device.type == 'cpu':  # whose attention is several times slower in bfloat16
            tokens = tokens.float()
        with torch.autocast('cpu', enabled=False):
            layers = self._decode_layers(tokens, labels, cells)
        at_cells = cells[:, None].expand(-1, self.num_classes, -1)               # (B, K, P)
        return TransFusionOutputs(layers=layers if self.auxiliary else layers[-1:],
                                  dense_heatmap=dense_heatmap, query_labels=labels,
                                  query_heatmap_score=scores.gather(2, at_cells))

    def _decode_layers(self, tokens: Tensor, labels: Tensor, cells: Tensor) -> List[LayerOutputs]:
        """Let proposals (B, P) look at the map's tokens (B, L, H), once per decoder layer."""
        at_cells = cells[..., None].expand(-1, -1, tokens.shape[2])              # (B, P, H)
        one_hot = F.one_hot(labels, self.num_classes).transpose(1, 2)            # (B, K, P)
        encoding = self.class_encoding(one_hot.to(tokens.dtype))                 # (B, H, P)
        query = tokens.gather(1, at_cells) + encoding.transpose(1, 2)            # (B, P, H)
        position = self.bev_pos[0][cells]                                        # (B, P, 2)
        layers = []
        for decode, predict in zip(self.decoder, self.prediction_heads):
            query = decode(query, tokens, position, self.bev_pos)
            raw = {k: v.float() for k, v in predict(query.transpose(1, 2)).items()}
            center = raw['center'] + position.transpose(1, 2)                    # (B, 2, P)
            code = BoxCode(center=center, height=raw['height'], dim=raw['dim'], rot=raw['rot'],
                           vel=raw.get('vel'))
            layers.append(LayerOutputs(code=code, logits=raw['heatmap']))
            position = center.detach().transpose(1, 2)
        return layers

    # ---- training

    def loss(self, bev: Tensor, samples: Sequence[Det3DDataSample]) -> TaskLosses:
        """Compare the boxes predicted from `bev` (B, C, X, Y) with `gt_instances_3d`."""
        truths = read_truths(samples, bev.device, num_classes=self.num_classes,
                             box_size=self.bbox_coder.box_size)
        return self.loss_by_outputs(self(bev), truths)

    def loss_by_outputs(self, outputs: TransFusionOutputs, truths: Sequence[Truth]) -> TaskLosses:
        """Losses of raw outputs.

        Everything is divided by the number of matched proposals of all layers together, the
        heatmap by that of its peaks, as in the published models. Of several processes the mean
        of their numbers is taken: their averaged gradient is that of one larger batch.
        """
        assignments = [self._assign(layer, truths) for layer in outputs.layers]
        targets = [proposal_targets(truths, layer, self.bbox_coder, num_classes=self.num_classes,
                                    num_proposals=self.num_proposals) for layer in assignments]
        self.count_classes(truths=_per_class([t.labels for t in truths], self.num_classes),
                           positives=targets[-1].classes.sum(dim=(0, 1)))
        matched = self._divisor('matched', sum(t.matched.sum() for t in targets))
        losses = dict(heatmap=self._heatmap_loss(outputs.dense_heatmap, truths))
        for i, (layer, target) in enumerate(zip(outputs.layers, targets)):
            name = '' if len(targets) == 1 else f'layer{i}/'
            losses[f'{name}cls'] = self._class_loss(layer.logits, target, matched)
            losses[f'{name}bbox'] = self._box_loss(layer.code, target, matched)
        ious = [torch.cat([layer[b].iou for layer in assignments]) for b in range(len(truths))]
        mean_iou = torch.stack([iou.sum() / max(len(iou), 1) for iou in ious]).mean()
        return TaskLosses(losses=losses, stats=dict(matched_iou=mean_iou))

    def _assign(self, layer: LayerOutputs, truths: Sequence[Truth]) -> List:
        boxes = self.bbox_coder.decode(layer.code).detach()                      # (B, P, 9)
        logits = layer.logits.detach().transpose(1, 2)                           # (B, P, K)
        return [self.assigner.assign(b, s, t.boxes, t.labels)
                for b, s, t in zip(boxes, logits, truths)]

    def counts(self, samples: Sequence[Det3DDataSample]) -> Dict[str, float]:
        """What `loss` divides by: `matched` proposals (every box gets one) and heatmap `peaks`."""
        truths = read_truths(samples, torch.device('cpu'), num_classes=self.num_classes,
                             box_size=self.bbox_coder.box_size)
        layers = len(self.decoder)
        return dict(matched=sum(min(len(t.labels), self.num_proposals) * layers for t in truths),
                    peaks=int(self._heatmap_targets(truths).eq(1).sum()))

    def _divisor(self, name: str, count: Tensor) -> float:
        """A count of this batch, or its mean over the parts that make up one update."""
        if name not in self.mean_counts:
            return _per_process(count)
        return _per_process(count.new_tensor(self.mean_counts[name], dtype=torch.float32),
                            parts=self.parts)

    def _heatmap_targets(self, truths: Sequence[Truth]) -> Tensor:
        """(B, K, X, Y)"""
        return heatmap_targets(
            truths, self.bbox_coder, num_classes=self.num_classes,
            map_size=self.test_cfg.map_size, min_overlap=self.train_cfg.gaussian_overlap,
            min_radius=self.train_cfg.min_radius)

    def _heatmap_loss(self, dense_heatmap: Tensor, truths: Sequence[Truth]) -> Tensor:
        target = self._heatmap_targets(truths)                                   # (B, K, X, Y)
        probability = dense_heatmap.float().sigmoid().clamp(1e-4, 1 - 1e-4)
        return self.loss_heatmap(probability, target,
                                 avg_factor=self._divisor('peaks', target.eq(1).sum()))

    def _class_loss(self, logits: Tensor, target: ProposalTargets, matched: float) -> Tensor:
        weight = torch.ones_like(target.matched, dtype=torch.float32)            # (B, P)
        if self.train_cfg.pos_weight > 0:
            weight[target.matched] = self.train_cfg.pos_weight
        return self.loss_cls(logits.transpose(1, 2).flatten(0, 1), target.classes.flatten(0, 1),
                             weight.flatten(), avg_factor=matched)

    def _box_loss(self, code: BoxCode, target: ProposalTargets, matched: float) -> Tensor:
        weight = target.known * target.codes.new_tensor(self.train_cfg.code_weights)
        return self.loss_bbox(code.stack(), target.codes, weight, avg_factor=matched)

    # ---- prediction

    def predict(self, bev: Tensor,
                samples: Sequence[Det3DDataSample]) -> List[Dict[str, BaseDataElement]]:
        """Predict from `bev` (B, C, X, Y) the field `pred_instances_3d` of each sample.

        It holds `bboxes_3d`, `scores_3d` and `labels_3d`; `pred_instances`, the boxes on images
        that MMDetection3D's evaluation asks for, is empty.
        """
        return [dict(pred_instances_3d=instances, pred_instances=InstanceData())
                for instances in self.predict_by_outputs(self(bev))]

    def predict_by_outputs(self, outputs: TransFusionOutputs) -> List[InstanceData]:
        """Boxes, scores and labels of raw outputs, per sample, in no particular order.

        A box's score is its probability of the class under which it was proposed, times the
        heatmap's value there.
        """
        labels = outputs.query_labels                                            # (B, P)
        confidence = outputs.layers[-1].logits.sigmoid() * outputs.query_heatmap_score
        scores = confidence.gather(1, labels[:, None])[:, 0]                     # (B, P)
        boxes = self.bbox_coder.decode(outputs.layers[-1].code)                  # (B, P, 9)
        wanted = self.bbox_coder.wanted(boxes, scores)                           # (B, P)
        return [self._instances(b[w], s[w], c[w])
                for b, s, c, w in zip(boxes, scores, labels, wanted)]

    def _instances(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> InstanceData:
        keep = without_duplicates(boxes, scores, labels, classes=self.nms_free_classes,
                                  nms_type=self.test_cfg.nms_type,
                                  threshold=self.test_cfg.nms_threshold)
        return InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes[keep], box_dim=boxes.shape[1]),
            scores_3d=scores[keep], labels_3d=labels[keep])


def _per_process(count: Tensor, *, parts: int = 1) -> float:
    """The mean of a count over all processes; of a total of none, as if it were one.

    Args:
        count: of this process, for each of the parts of its batch.
        parts: number of these.
    """
    count = count.float()
    all_reduce(count, 'mean')
    return max(float(count), 1 / (parts * get_world_size()))


def _per_class(labels: Sequence[Tensor], num_classes: int) -> Tensor:
    """How many of all labels are of each class: (K,)."""
    return F.one_hot(torch.cat(list(labels)), num_classes).sum(dim=0)
