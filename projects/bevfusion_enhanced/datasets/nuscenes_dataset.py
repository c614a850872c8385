"""nuScenes for detection and map segmentation at once.

Reads this project's info files and those of MMDetection3D's script. Boxes are in the LiDAR frame of
the key frame (x right, y forward, z up; x, y, z of the bottom centre, dx, dy, dz, yaw, vx, vy;
metres, radians, metres a second), labels index `metainfo['classes']`. `a2b` maps column vectors
from a to b.

Shapes: M boxes of a sample.
"""
from os import path as osp
from typing import Callable, List, Optional, Sequence, Tuple, Union

import numpy as np
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.registry import DATASETS
from mmdet3d.structures import LiDARInstance3DBoxes

from bevfusion_enhanced.datasets.info_files import (
    RECREATE,
    read_info_file,
    without_garbage_collection,
)
from bevfusion_enhanced.datasets.map_masks import require_map_files
from bevfusion_enhanced.datasets.pipeline_checks import check_pipeline_fits
from bevfusion_enhanced.datasets.scene_lookup import scenes_of_samples
from bevfusion_enhanced.datasets.vocabulary import CAMERAS, DETECTION_CLASSES, MAP_LAYERS
from bevfusion_enhanced.errors import ConfigError, DataError

DATA_PREFIX = {'pts': 'samples/LIDAR_TOP', 'sweeps': 'sweeps/LIDAR_TOP',
               **{camera: f'samples/{camera}' for camera in CAMERAS}}
"""nuScenes' own folders; files of a camera that is not named are looked for in `img`."""

_MODALITIES = ('use_camera', 'use_lidar')
_SCENE_FIELDS = ('location', 'scene_token', 'scene_name', 'scene_description', 'prev', 'next')


@DATASETS.register_module()
class NuScenesMultiTaskDataset(NuScenesDataset):
    """Key frames with boxes and, where `metainfo` names map classes, the place of their map.

    Args:
        data_root: Root of the dataset; relative paths below start here.
        ann_file: Info file.
        pipeline: Transforms.
        metainfo: `classes` (default: all ten), `map_classes` (default: no map task); `version` is
            read from the info file.
        data_prefix: Folders of the files of LiDAR key frames (`pts`), sweeps (`sweeps`) and each
            camera (or `img` for all of them).
        modality: use_camera, use_lidar; both by default.
        use_valid_flag: Keep boxes with any LiDAR or radar point, as the official evaluation does;
            else those with a LiDAR point.
        with_velocity: Boxes have velocities.
        filter_empty_gt: In training, replace samples without boxes; such samples still teach the
            map.
        test_mode: Samples are for evaluation.
        load_eval_anns: Boxes are available in `test_mode` too.
        indices: Use only these samples, or the first so many.
        serialize_data: Keep the samples as bytes that all workers share.
        lazy_init: Read the info file later.
        max_refetch: How often a replaced sample is drawn again.
        backend_args: For readers of MMDetection3D in the pipeline.

    Raises:
        ConfigError: A class, map class or modality that does not exist.
        DataError: A folder or file is missing, or the info file does not fit what is asked for.
    """

    METAINFO = {'classes': DETECTION_CLASSES,
                'palette': [(255, 158, 0), (255, 99, 71), (233, 150, 70), (255, 127, 80),
                            (255, 140, 0), (112, 128, 144), (255, 61, 99), (220, 20, 60),
                            (0, 0, 230), (47, 79, 79)]}

    def __init__(self, *, data_root: str, ann_file: str,
                 pipeline: Sequence[Union[dict, Callable]] = (), metainfo: Optional[dict] = None,
                 data_prefix: Optional[dict] = None, modality: Optional[dict] = None,
                 use_valid_flag: bool = True, with_velocity: bool = True,
                 box_type_3d: str = 'LiDAR', filter_empty_gt: bool = False,
                 test_mode: bool = False, load_eval_anns: bool = True,
                 indices: Optional[Union[int, Sequence[int]]] = None, serialize_data: bool = True,
                 lazy_init: bool = False, max_refetch: int = 1000,
                 backend_args: Optional[dict] = None) -> None:
        metainfo = dict(metainfo or {})
        modality = dict(modality or dict.fromkeys(_MODALITIES, True))
        _check_names(metainfo)
        _check_modality(modality)
        if not osp.isdir(data_root):
            raise DataError(f'data_root {data_root!r} is not a folder; set it to the root of the '
                            'dataset')
        super().__init__(
            data_root=data_root, ann_file=ann_file, pipeline=list(pipeline), metainfo=metainfo,
            data_prefix=dict(DATA_PREFIX if data_prefix is None else data_prefix),
            modality=modality, use_valid_flag=use_valid_flag, with_velocity=with_velocity,
            box_type_3d=box_type_3d, filter_empty_gt=filter_empty_gt, test_mode=test_mode,
            load_eval_anns=load_eval_anns, indices=indices, serialize_data=serialize_data,
            lazy_init=lazy_init, max_refetch=max_refetch, backend_args=backend_args)

    def full_init(self) -> None:
        """Read the info file, unless that was done; see `load_data_list`."""
        with without_garbage_collection():
            super().full_init()

    def load_data_list(self) -> List[dict]:
        """Read the info file.

        Raises:
            DataError: See the class.
        """
        content = read_info_file(self.ann_file)
        infos = content['data_list']
        if not infos:
            raise DataError(f'info file {self.ann_file} holds no samples; choose another split, or '
                            f'{RECREATE}')
        self._adopt(content['metainfo'])
        scenes = self._scenes(infos)
        try:
            samples = [{**self.parse_data_info(info), **scene}
                       for info, scene in zip(infos, scenes, strict=True)]
        except KeyError as error:
            raise DataError(f'info file {self.ann_file}: a sample has no {error}; '
                            f'{RECREATE}') from None
        if self.pipeline.transforms:
            self._check_files(samples)
            check_pipeline_fits(self.pipeline, metainfo=self._metainfo, samples=samples,
                                info_file=self.ann_file)
        return samples

    def filter_data(self) -> List[dict]:
        """All samples: `filter_empty_gt` works while reading, so that indices stay."""
        self._require_samples(self.data_list)
        return self.data_list

    def _get_unserialized_subset(self, indices: Union[int, Sequence[int]]) -> List[dict]:
        samples = super()._get_unserialized_subset(indices)
        self._require_samples(samples)
        return samples

    def _require_samples(self, samples: Sequence[dict]) -> None:
        """There are samples, and one with a box where `filter_empty_gt` leaves out the others."""
        if not samples:
            raise DataError(f'no sample of info file {self.ann_file} is left: indices is '
                            f'{self._indices!r}; choose at least one')
        needs_boxes = self.filter_empty_gt and not self.test_mode
        if needs_boxes and not any(len(sample['ann_info']['gt_labels_3d']) for sample in samples):
            raise DataError(f'info file {self.ann_file}: none of {len(samples)} samples has a '
                            f'valid box of {list(self._metainfo["classes"])}, and filter_empty_gt '
                            'leaves out those without; choose other classes or set '
                            'filter_empty_gt=False')

    def _adopt(self, metainfo: dict) -> None:
        """Take the version and the order of labels from the info file."""
        categories = metainfo.get('categories', {})
        absent = [name for name in self._metainfo['classes'] if categories.get(name, -1) < 0]
        if absent:
            known = [name for name, label in categories.items() if label >= 0]
            raise DataError(f'info file {self.ann_file} has no category {absent} of '
                            f'metainfo.classes; it has {known}')
        self.label_mapping = {label: -1 for label in categories.values()}
        self.label_mapping[-1] = -1
        for label, name in enumerate(self._metainfo['classes']):
            self.label_mapping[categories[name]] = label
        for key, value in {**metainfo, 'split': osp.basename(self.ann_file)}.items():
            self._metainfo.setdefault(key, value)
        if self._metainfo['version'] != metainfo['version']:
            raise DataError(f'info file {self.ann_file} is of {metainfo["version"]}, '
                            f'metainfo.version says {self._metainfo["version"]}; leave version out')

    def _scenes(self, infos: Sequence[dict]) -> List[dict]:
        """Scene and location of each sample, looked up in the tables where the infos lack them."""
        known = [{key: info[key] for key in _SCENE_FIELDS if key in info} for info in infos]
        required = ['location'] if self._metainfo.get('map_classes') else []
        wished = ['scene_description'] if self.test_mode else []  # results are told apart by it
        if all(key in scene for scene in known for key in (*required, *wished)):
            return known
        try:
            scenes = scenes_of_samples(self.data_root, self._metainfo['version'])
            return [{**scenes[info['token']], **scene}
                    for info, scene in zip(infos, known, strict=True)]
        except (DataError, KeyError) as error:
            if all(key in scene for scene in known for key in required):
                return known
            raise DataError(f'info file {self.ann_file} has no map locations and they are not in '
                            f'the tables ({error}); {RECREATE}') from None

    def _check_files(self, samples: Sequence[dict]) -> None:
        """Whether the folders are right, seen at the first sample, and all maps there."""
        first = samples[0]
        files = [first['lidar_path']] if self.modality['use_lidar'] else []
        files += [view['img_path'] for view in first.get('images', {}).values()]
        missing = [path for path in files if not osp.isfile(path)]
        if missing:
            raise DataError(f'sample {first["token"]}: {missing[0]} does not exist; check '
                            'data_root and data_prefix')
        if self._metainfo.get('map_classes'):
            require_map_files(self.data_root, sorted({sample['location'] for sample in samples}))

    def parse_data_info(self, info: dict) -> dict:
        """A sample as the pipeline takes it: paths joined, arrays for lists, boxes as such."""
        lidar = info['lidar_points']
        path = osp.join(self.data_prefix.get('pts', ''), lidar['lidar_path'])
        sample = dict(
            token=info['token'], timestamp=info['timestamp'], lidar_path=path,
            num_pts_feats=lidar['num_pts_feats'], ego2global=np.array(info['ego2global']),
            lidar_points=dict(lidar_path=path, num_pts_feats=lidar['num_pts_feats'],
                              lidar2ego=np.array(lidar['lidar2ego'])))
        if self.modality['use_lidar']:
            sample['lidar_sweeps'] = [self._parse_sweep(sweep)
                                      for sweep in info.get('lidar_sweeps', [])]
        if self.modality['use_camera']:
            sample['images'] = {name: self._parse_view(name, view)
                                for name, view in info['images'].items()}
        if not self.test_mode:
            sample['ann_info'] = self.parse_ann_info(info)
        elif self.load_eval_anns and 'instances' in info:
            sample['ann_info'] = sample['eval_ann_info'] = self.parse_ann_info(info)
        return sample

    def _parse_sweep(self, sweep: dict) -> dict:
        """A sweep is a file of `sweeps`, or an earlier key frame."""
        lidar = sweep['lidar_points']
        folder, name = osp.split(lidar['lidar_path'])
        is_key_frame = osp.basename(osp.dirname(folder)) == 'samples'
        prefix = self.data_prefix.get('pts' if is_key_frame else 'sweeps', '')
        return dict(timestamp=sweep['timestamp'],
                    lidar_points=dict(lidar_path=osp.join(prefix, name),
                                      lidar2sensor=np.array(lidar['lidar2sensor'])))

    def _parse_view(self, name: str, view: dict) -> dict:
        prefix = self.data_prefix.get(name, self.data_prefix.get('img', ''))
        return {**{key: np.array(value) if isinstance(value, list) else value
                   for key, value in view.items()},
                'img_path': osp.join(prefix, view['img_path']),
                **({'previous': {**view['previous'],
                                 'img_path': osp.join(self.data_root,
                                                      view['previous']['img_path'])}}
                   if 'previous' in view else {})}

    def parse_ann_info(self, info: dict) -> dict:
        """The boxes of a sample that are of a class and valid.

        Returns:
            gt_bboxes_3d (LiDARInstance3DBoxes, M), gt_labels_3d and num_lidar_pts (M,) int64.
        """
        instances = info.get('instances', [])
        labels = np.array([self.label_mapping[instance['bbox_label_3d']] for instance in instances],
                          dtype=np.int64)
        points = np.array([instance['num_lidar_pts'] for instance in instances], dtype=np.int64)
        valid = points > 0
        if self.use_valid_flag:
            valid = np.array([instance['bbox_3d_isvalid'] for instance in instances], dtype=bool)
        keep = valid & (labels >= 0)
        boxes = _boxes(instances, self.with_velocity)[keep]
        for label, count in enumerate(np.bincount(labels[keep],
                                                  minlength=len(self.num_ins_per_cat))):
            self.num_ins_per_cat[label] += int(count)
        boxes = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[-1], origin=(0.5, 0.5, 0.5))
        return dict(gt_bboxes_3d=boxes.convert_to(self.box_mode_3d), gt_labels_3d=labels[keep],
                    num_lidar_pts=points[keep])

    def prepare_data(self, index: int) -> Optional[dict]:
        """Run the pipeline on one sample; None asks for another one (see `filter_empty_gt`)."""
        sample = self.get_data_info(index)  # a fresh copy
        sample.update(box_type_3d=self.box_type_3d, box_mode_3d=self.box_mode_3d,
                      lidar_aug_matrix=np.eye(4, dtype=np.float32))
        needs_boxes = self.filter_empty_gt and not self.test_mode
        if needs_boxes and not len(sample['ann_info']['gt_labels_3d']):
            return None
        packed = self.pipeline(sample)
        if needs_boxes and not len(packed['data_samples'].gt_instances_3d.labels_3d):
            return None
        return packed


def _boxes(instances: Sequence[dict], with_velocity: bool) -> np.ndarray:
    """(M, 7 or 9) float32 boxes with gravity centres; an unknown velocity is 0."""
    boxes = np.array([instance['bbox_3d'] for instance in instances],
                     dtype=np.float32).reshape(-1, 7)
    if not with_velocity:
        return boxes
    velocities = np.array([instance['velocity'] for instance in instances],
                          dtype=np.float32).reshape(-1, 2)
    return np.concatenate([boxes, np.nan_to_num(velocities, nan=0.0)], axis=1)


def _check_names(metainfo: dict) -> None:
    for field, known in (('classes', DETECTION_CLASSES), ('map_classes', tuple(MAP_LAYERS))):
        names: Tuple[str, ...] = tuple(metainfo.get(field, ()))
        unknown = [name for name in names if name not in known]
        if unknown or len(set(names)) != len(names):
            raise ConfigError(f'metainfo.{field}: {unknown or list(names)} unknown or named twice; '
                              f'known: {list(known)}')


def _check_modality(modality: dict) -> None:
    unknown = [key for key in modality if key not in _MODALITIES]
    if unknown or not any(modality.values()):
        raise ConfigError(f'modality is {modality}; expected use_camera and use_lidar, at least '
                          'one of them True')
    for key in _MODALITIES:
        modality.setdefault(key, False)
