r"""The detector: every sensor to one BEV map, every task from it.

    images -> encoders.camera \                                  task_gca.<task> -> heads.<task>
                                fuser -> decoder -> shared BEV <
    points -> encoders.lidar  /                                  task_gca.<task> -> heads.<task>

Each part is optional: what the config leaves out, the model does not have. With a decoder for each
task the fused map is what is shared, and `task_decoders.<task>` comes before the gate.

Shapes: B samples, N cameras, H x W pixels, P points, C channels, X cells along LiDAR x (right)
and Y along LiDAR y (forward) of the BEV map.
"""
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.logging import MMLogger
from mmengine.model import ModuleDict
from torch import Tensor

from bevfusion_enhanced.errors import ConfigError, DataError
from bevfusion_enhanced.models.attention import GlobalContextAttention
from bevfusion_enhanced.models.calibration import Calibration
from bevfusion_enhanced.models.camera.encoder import CameraEncoder
from bevfusion_enhanced.models.lidar.encoder import LidarEncoder
from bevfusion_enhanced.models.task_balance import (
    Balanced,
    GradientProbe,
    LossesByTask,
    SharedPart,
    shared_parameters,
)
from bevfusion_enhanced.ops.winograd import use_fewer_multiplications

ENCODERS = dict(camera=CameraEncoder, lidar=LidarEncoder)
GCA_MODES = ('none', 'shared', 'task_specific')
SHARED = 'shared'  # the name of the one GCA that all tasks share


@MODELS.register_module()
class BEVFusion(Base3DDetector):
    """Joint 3D detection and BEV map segmentation from cameras and LiDAR.

    Liu et al., 'BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View
    Representation', ICRA 2023, with a dictionary of heads and an optional gate before each.

    Args:
        encoders: arguments of `CameraEncoder` under `camera`, of `LidarEncoder` under `lidar`.
        decoder: configs of `backbone` and `neck`, which turn the fused map into the shared one.
        decoder_per_task: give every task such a decoder of its own.
        heads: for each task the config of its `TaskHead`.
        fuser: config of the fuser; needed where there are two encoders.
        task_gca: `mode` (none, shared or task_specific), `in_channels`, `reduction`, and `tasks`,
            the heads that get one (all, where it is left out).
        loss_scale: for each task the factor of all its losses; 1 where it is left out.
        task_balance: config of a `TaskBalance`, which then weighs the scaled losses; they are
            summed where it is left out.
        drop_at_test: encoders whose sensor is lost in testing: no points, and a camera map of
            zeros.
        data_preprocessor: config of the data preprocessor.
        init_cfg: see `mmengine.model.BaseModule`.

    Raises:
        ConfigError: a part is missing, or names an encoder or a task that does not exist.
    """

    def __init__(self, *, encoders: Mapping[str, Dict], decoder: Mapping[str, Dict],
                 heads: Mapping[str, Dict], fuser: Optional[Dict] = None,
                 task_gca: Optional[Dict] = None,
                 loss_scale: Optional[Mapping[str, float]] = None,
                 task_balance: Optional[Dict] = None,
                 decoder_per_task: bool = False, drop_at_test: Sequence[str] = (),
                 data_preprocessor: Optional[Dict] = None,
                 init_cfg: Optional[Dict] = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        encoders = _present(encoders)
        heads = _present(heads)
        _check_parts(encoders, heads, fuser=fuser)
        _check_tasks('loss_scale', loss_scale or {}, heads)
        self.encoders = ModuleDict({
            name: ENCODERS[name](**encoders[name]) for name in ENCODERS if name in encoders})
        self.fuser = MODELS.build(fuser) if fuser else None
        _check_dropped(drop_at_test, encoders)
        self.drop_at_test = tuple(drop_at_test)
        self.decoder = None if decoder_per_task else build_decoder(decoder)
        self.task_decoders = ModuleDict(
            {task: build_decoder(decoder) for task in heads} if decoder_per_task else {})
        self.task_gca = build_task_gca(task_gca or {}, tasks=list(heads))
        if decoder_per_task and SHARED in self.task_gca:
            raise ConfigError('task_gca.mode shared gates the map of one decoder, but '
                              'decoder_per_task has several: use mode task_specific or none')
        self.heads = ModuleDict({task: MODELS.build(head) for task, head in heads.items()})
        self.loss_scale = {task: float((loss_scale or {}).get(task, 1.0)) for task in heads}
        self.task_balance = (MODELS.build(task_balance, default_args=dict(tasks=list(heads)))
                             if task_balance else None)
        self.gradient_probe = GradientProbe()
        use_fewer_multiplications(self)

    def extract_feat(self, batch_inputs_dict: Dict[str, Any],
                     batch_data_samples: Sequence[Det3DDataSample]) -> Tensor:
        """Encode every sensor, fuse and decode: the BEV map (B, C, X, Y) that all tasks share.

        Args:
            batch_inputs_dict: `imgs` (B, N, 3, H, W) and `points`, B clouds (P, 5), each where an
                encoder reads it.
            batch_data_samples: B samples with the calibration in their metainfo.
        """
        images, points = batch_inputs_dict.get('imgs'), batch_inputs_dict.get('points')
        dropped = () if self.training else self.drop_at_test
        if 'lidar' in dropped and points is not None:
            points = [cloud[:0] for cloud in points]
        maps = {}
        if 'camera' in self.encoders and 'camera' not in dropped:
            images = _required(images, 'imgs', encoder='camera')
            calibration = Calibration.from_samples(batch_data_samples, images.device)
            maps['camera'] = self.encoders['camera'](images, points, calibration)  # (B, 80, X, Y)
        if 'lidar' in self.encoders:
            points = _required(points, 'points', encoder='lidar')
            maps['lidar'] = self.encoders['lidar'](points)                       # (B, 256, X, Y)
        if 'camera' in dropped:
            B, _, X, Y = maps['lidar'].shape
            channels = self.encoders['camera'].vtransform.out_channels
            maps['camera'] = maps['lidar'].new_zeros(B, channels, X, Y)          # (B, 80, X, Y)
        maps = [maps[name] for name in ENCODERS if name in maps]
        bev = self.fuser(maps) if self.fuser is not None else maps[0]            # (B, 256, X, Y)
        return bev if self.decoder is None else _decode(self.decoder, bev)       # (B, 512, X, Y)

    def task_maps(self, bev: Tensor) -> Dict[str, Tensor]:
        """The map that each task's head sees: the shared one, through what is the task's own."""
        bev = self._through_shared_gate(bev)
        return {task: self._through_own_parts(task, bev) for task in self.heads}

    def _through_shared_gate(self, bev: Tensor) -> Tensor:
        return self.task_gca[SHARED](bev) if SHARED in self.task_gca else bev

    def _through_own_parts(self, task: str, bev: Tensor) -> Tensor:
        if task in self.task_decoders:
            bev = _decode(self.task_decoders[task], bev)
        return self.task_gca[task](bev) if task in self.task_gca else bev

    def loss(self, batch_inputs_dict: Dict[str, Any],
             batch_data_samples: Sequence[Det3DDataSample]) -> Dict[str, Tensor]:
        """Losses as `loss/<task>/<name>`, scaled, and what is only watched as `stats/...`."""
        bev = self._through_shared_gate(self.extract_feat(batch_inputs_dict, batch_data_samples))
        branches = ({task: bev for task in self.heads} if self.task_balance is None
                    else self.task_balance.branch(bev))
        losses: LossesByTask = {}
        logged: Dict[str, Tensor] = {}
        for task, head in self.heads.items():
            own, stats = head.loss(self._through_own_parts(task, branches[task]),
                                   batch_data_samples)
            losses[task] = {name: self.loss_scale[task] * v for name, v in own.items()}
            logged.update({f'stats/{task}/{name}': v for name, v in stats.items()})
        for name, value in self.gradient_probe.look(losses, branches).items():
            logged[f'stats/{name}'] = value
        balanced = self._balance(losses, bev, branches)
        for task, named in balanced.losses.items():
            logged.update({f'loss/{task}/{name}': v for name, v in named.items()})
        for task, named in balanced.stats.items():
            logged.update({f'stats/{task}/{name}': v for name, v in named.items()})
        return logged

    def _balance(self, losses: LossesByTask, bev: Tensor,
                 branches: Mapping[str, Tensor]) -> Balanced:
        if self.task_balance is None:
            return Balanced(losses=losses, stats={})
        own = ['heads', 'task_balance', 'task_decoders',
               *(f'task_gca.{task}' for task in self.task_gca if task != SHARED)]
        before = self.encoders if self.fuser is None else self.fuser
        last_part = before if self.decoder is None else self.decoder['neck']
        last = [p for p in last_part.parameters() if p.requires_grad]
        return self.task_balance.balance(losses, SharedPart(
            bev=bev, branches=branches, last_layer=last,
            parameters=shared_parameters(self, own=own)))

    def predict(self, batch_inputs_dict: Dict[str, Any],
                batch_data_samples: Sequence[Det3DDataSample]) -> List[Det3DDataSample]:
        """Set every head's predictions on the samples, and return them."""
        maps = self.task_maps(self.extract_feat(batch_inputs_dict, batch_data_samples))
        for task, head in self.heads.items():
            predictions = head.predict(maps[task], batch_data_samples)
            for sample, predicted in zip(batch_data_samples, predictions, strict=True):
                for field, element in predicted.items():
                    setattr(sample, field, element)
        return list(batch_data_samples)

    def _forward(self, batch_inputs_dict: Union[Dict[str, Any], Tensor],
                 batch_data_samples: Optional[Sequence[Det3DDataSample]] = None) -> Tensor:
        """Tensor mode: the BEV map (B, C, X, Y) that all tasks share.

        MMDetection3D's script that counts operations gives nothing but clouds (B, P, 5).
        """
        if isinstance(batch_inputs_dict, Tensor):
            batch_inputs_dict = dict(points=list(batch_inputs_dict))
        return self.extract_feat(batch_inputs_dict, batch_data_samples)


def build_decoder(cfg: Mapping[str, Dict]) -> ModuleDict:
    """`backbone` and `neck` of a BEV map."""
    return ModuleDict({part: MODELS.build(cfg[part]) for part in ('backbone', 'neck')})


def _decode(decoder: Mapping[str, Any], bev: Tensor) -> Tensor:
    """The finest level of the decoder's neck, (B, 512, X, Y), from a map (B, 256, X, Y)."""
    return decoder['neck'](decoder['backbone'](bev))[0]


def build_task_gca(cfg: Mapping[str, Any], *, tasks: Sequence[str]) -> ModuleDict:
    """The gates before the heads, by task or under `shared`; empty in mode none. Logs them.

    Args:
        cfg: `task_gca` of the detector.
        tasks: the detector's tasks.
    """
    arguments = {key: value for key, value in cfg.items() if key not in ('mode', 'tasks')}
    mode = cfg.get('mode', 'none')
    if mode not in GCA_MODES:
        raise ConfigError(f'task_gca.mode must be one of {GCA_MODES}, got {mode!r}')
    if mode == 'none':
        return ModuleDict()
    chosen = cfg.get('tasks', tasks)
    _check_tasks('task_gca.tasks', chosen, tasks)
    if mode == 'shared' and set(chosen) != set(tasks):
        raise ConfigError(f'task_gca.tasks={list(chosen)} leaves a task out, but mode shared is '
                          'one gate for all: use mode task_specific')
    gates = ModuleDict({name: GlobalContextAttention(**arguments)
                        for name in ([SHARED] if mode == 'shared' else chosen)})
    MMLogger.get_current_instance().info(_describe(mode, gates))
    return gates


def _describe(mode: str, gates: Mapping[str, GlobalContextAttention]) -> str:
    title = {'shared': 'Shared', 'task_specific': 'Task-specific'}[mode]
    counts = {name: sum(p.numel() for p in gate.parameters()) for name, gate in gates.items()}
    lines = [f'  [{name}] GCA: in_channels {gate.in_channels}, reduction {gate.reduction}, '
             f'params: {counts[name]:,}' for name, gate in gates.items()]
    return '\n'.join([f'[BEVFusion] {title} GCA mode enabled', *lines,
                      f'  Total: {sum(counts.values()):,}'])


def _present(parts: Mapping[str, Optional[Dict]]) -> Dict[str, Dict]:
    """The entries that are not None: a config removes a part of its base by setting it to None."""
    return {name: cfg for name, cfg in parts.items() if cfg is not None}


def _check_parts(encoders: Mapping[str, Dict], heads: Mapping[str, Dict], *,
                 fuser: Optional[Dict]) -> None:
    unknown = sorted(set(encoders) - set(ENCODERS))
    if unknown:
        raise ConfigError(f'encoders: {unknown} do not exist; known are {sorted(ENCODERS)}')
    if not encoders:
        raise ConfigError(f'encoders is empty: give at least one of {sorted(ENCODERS)}')
    if not heads:
        raise ConfigError('heads is empty: give at least one task its head')
    if len(encoders) > 1 and not fuser:
        raise ConfigError(f'fuser is missing: the encoders {sorted(encoders)} need one, such as '
                          'ConvFuser')
    if SHARED in heads:
        raise ConfigError(f'a task cannot be named {SHARED!r}: call it something else')


def _check_dropped(dropped: Sequence[str], encoders: Mapping[str, Dict]) -> None:
    unknown = sorted(set(dropped) - set(encoders))
    if unknown or set(dropped) == set(encoders):
        raise ConfigError(f'drop_at_test={list(dropped)} must leave one of the encoders '
                          f'{sorted(encoders)}, and name no other')


def _check_tasks(field: str, named: Sequence[str], tasks: Sequence[str]) -> None:
    unknown = sorted(set(named) - set(tasks))
    if unknown:
        raise ConfigError(f'{field} names the tasks {unknown}, but the heads are {sorted(tasks)}')


def _required(value: Any, key: str, *, encoder: str) -> Any:
    if value is None:
        raise DataError(f'the model has a {encoder} encoder, but the batch has no {key!r}: load '
                        f'them in the pipeline, or leave encoders.{encoder} out of the config')
    return value
