"""`tools/test.py --show-dir` of MMDetection3D, which asks a hook of `default_hooks` to draw."""
from pathlib import Path
from typing import Optional, Sequence

from mmdet3d.registry import HOOKS
from mmdet3d.structures import Det3DDataSample
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from bevfusion_enhanced.visualization.hook import picture_name


@HOOKS.register_module()
class ShowDirHook(Hook):
    """Draws every sample of a test; does nothing until a script sets `draw`.

    In place of MMDetection3D's Det3DVisualizationHook, which reads the sensors' files twice and
    makes a folder within the last one for each batch.

    Args:
        draw: Whether to draw.
        show: Open windows; there are none, so the visualizer refuses it.
        wait_time: Of windows.
        test_out_dir: Folder of the pictures, below the test's own; the visualizer's backends get
            them where it is left out.
        vis_task: The script asks for one; a sample is drawn with all that it has.
        score_thr: Boxes predicted with less are left out.
        interval: Draw every so many batches.
    """

    priority = 'LOW'

    def __init__(self, *, draw: bool = False, show: bool = False, wait_time: float = 0.0,
                 test_out_dir: Optional[str] = None, vis_task: str = 'multi-modality_det',
                 score_thr: float = 0.3, interval: int = 1) -> None:
        self.draw, self.show, self.wait_time = draw, show, wait_time
        self.test_out_dir = test_out_dir
        self.vis_task, self.score_thr, self.interval = vis_task, score_thr, interval

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                        outputs: Optional[Sequence[Det3DDataSample]] = None) -> None:
        """Draw the samples of a batch."""
        if not self.draw or batch_idx % self.interval:
            return
        for sample in outputs or ():
            index = int(sample.metainfo.get('sample_idx', batch_idx))
            file = None if self.test_out_dir is None else Path(
                runner.work_dir, runner.timestamp, self.test_out_dir,
                picture_name(index, sample.metainfo.get('token', '')))
            Visualizer.get_current_instance().add_datasample(
                'test sample', {}, data_sample=sample, show=self.show, wait_time=self.wait_time,
                out_file=file, vis_task=self.vis_task, pred_score_thr=self.score_thr, step=index)
