"""The official nuScenes detection metrics (Caesar et al., 2020) through nuscenes-devkit.

Average precision by centre distance, five true-positive errors (translation m, scale 1 - IoU,
orientation rad, velocity m/s, attribute 1 - accuracy), and the nuScenes detection score.
"""
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmdet3d.registry import METRICS
from mmengine.logging import MMLogger

from bevfusion_enhanced.datasets.info_files import RECREATE, read_info_file
from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.evaluation.detection_results import (
    SUMMARY_FILE,
    DetectionResults,
    Submission,
    class_ranges,
    dump_json,
    protocol_of,
    save_submission,
    score_submission,
)
from bevfusion_enhanced.evaluation.once_per_sample import OncePerSampleMetric
from bevfusion_enhanced.evaluation.rings import DEFAULT_RINGS, check_rings
from bevfusion_enhanced.evaluation.submission import submission_boxes


@METRICS.register_module()
class NuScenesDetectionMetric(OncePerSampleMetric):
    """Official mAP, NDS and true-positive errors over the samples that were predicted.

    Keys: `object/mAP`, `object/NDS`, `object/mATE`, mASE, mAOE, mAVE, mAAE, `object/<class>/AP` and
    `object/<class>/ATE`, ASE, AOE, AVE, AAE. Errors that the protocol does not define (a cone has
    no heading) are left out. Predictions without any box score zero. Parts of the set:
    `object/<part>/<class>/AP` and `object/<part>/mean/AP`, where a part is a ring around the ego,
    such as `0-15m`, see `SampleDetectionEval.precision_by_ring`, or `day`, `night` or `rain` by the
    scene's description; these have the mean errors and NDS as well, `object/night/mean/NDS`, see
    `scores_by_kind`. Samples carry `pred_instances_3d` (bboxes_3d, scores_3d, labels_3d) and
    `token` or `sample_idx`.

    Args:
        data_root: Root of the dataset with its tables.
        ann_file: Info file of the evaluated split, for poses; relative to `data_root` if not found.
        version: Of the tables; None takes the info file's.
        jsonfile_prefix: Folder in which `results_nusc.json` (a submission),
            `results_nusc.about.json` (its protocol) and `metrics_summary.json` are kept.
        modality: use_camera, use_lidar: what the submission says was used.
        format_only: Write the submission and score nothing, as for the test split.
        eval_version: The protocol.
        rings: Distances from the ego by which precision is told apart, metres; () for none.
        collect_device: Where ranks exchange predictions: 'cpu' or 'gpu'.
        prefix: Replaces 'object' in the keys.

    Raises:
        ConfigError: `format_only` without a folder, or unknown class names.
        DataError: The info file or the tables are missing or of other samples.
    """

    default_prefix = 'object'

    def __init__(self, *, data_root: str, ann_file: str, version: Optional[str] = None,
                 jsonfile_prefix: Optional[str] = None, modality: Optional[dict] = None,
                 format_only: bool = False, eval_version: str = 'detection_cvpr_2019',
                 rings: Sequence[Sequence[float]] = DEFAULT_RINGS, collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(results_dir=jsonfile_prefix, collect_device=collect_device, prefix=prefix)
        if format_only and jsonfile_prefix is None:
            raise ConfigError('format_only needs jsonfile_prefix, the folder to write to')
        in_root = Path(data_root) / ann_file
        self.data_root = data_root
        self.ann_file = in_root if in_root.is_file() else Path(ann_file)
        if not self.ann_file.is_file():
            raise DataError(f'info file {ann_file} does not exist (nor {in_root}); {RECREATE}')
        self.version = version
        self.modality = modality or dict(use_camera=True, use_lidar=True)
        self.format_only = format_only
        self.eval_version = eval_version
        self.rings = check_rings(rings)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the boxes of each sample as arrays."""
        for sample in data_samples:
            predicted = sample['pred_instances_3d']
            self.results.append(dict(
                sample_idx=sample.get('sample_idx'), token=sample.get('token'),
                boxes=predicted['bboxes_3d'].tensor.detach().cpu().numpy(),
                scores=predicted['scores_3d'].detach().cpu().numpy(),
                labels=predicted['labels_3d'].detach().cpu().numpy()))

    def score(self, records: List[dict]) -> Dict[str, float]:
        """Write the submission and score it."""
        infos = read_info_file(self.ann_file)
        version = self.version or infos['metainfo']['version']
        boxes = self._format(records, infos['data_list'], class_ranges(self.eval_version))
        protocol = protocol_of(boxes, eval_version=self.eval_version, rings=self.rings,
                               version=version, split=self.ann_file.name)
        if self.results_dir is not None:
            save_submission(DetectionResults(
                boxes=boxes, meta=self._meta(), protocol=protocol, conditions=self.conditions,
                data_root=self.data_root), self.results_dir)
        if self.format_only:
            return {}

        scores = score_submission(boxes, data_root=self.data_root, version=version,
                                  eval_version=self.eval_version, rings=self.rings)
        if self.results_dir is not None:
            dump_json({**scores.summary, 'meta': self._meta(), 'samples': len(boxes),
                       'protocol': protocol, 'conditions': self.conditions},
                      self.results_dir / SUMMARY_FILE, indent=2)
        return scores.metrics

    def _format(self, records: List[dict], infos: List[dict],
                class_range: Dict[str, float]) -> Submission:
        """Sample token -> records, one entry for each sample that was predicted."""
        classes = self.dataset_meta['classes']
        unknown = [name for name in classes if name not in class_range]
        if unknown:
            raise ConfigError(f'classes {unknown} are not in the protocol {self.eval_version}; '
                              'known: '
                              f'{list(class_range)}')
        by_token = {info['token']: info for info in infos}
        submission: Submission = {}
        for result in records:
            token = result['token'] or infos[result['sample_idx']]['token']
            if token not in by_token:
                raise DataError(f'sample {token} is not in {self.ann_file}; the metric and the '
                                'test dataset must name the same ann_file')
            info = by_token[token]
            submission[token] = submission_boxes(
                token=token, boxes=result['boxes'], scores=result['scores'],
                labels=result['labels'],
                lidar2ego=np.array(info['lidar_points']['lidar2ego']),
                ego2global=np.array(info['ego2global']), classes=classes, class_range=class_range)
        if len(submission) < len(infos):
            MMLogger.get_current_instance().warning(
                f'detection is scored on {len(submission)} of the {len(infos)} samples in '
                f'{self.ann_file}: the others were not predicted')
        return submission

    def _meta(self) -> dict:
        return {**{f'use_{name}': False for name in ('radar', 'map', 'external')}, **self.modality}
