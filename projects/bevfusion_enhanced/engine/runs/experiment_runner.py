"""MMEngine's Runner, with the log of each start in the run's folder."""
from pathlib import Path
from typing import Optional, Union

from mmengine.logging import MMLogger
from mmengine.runner import Runner


class ExperimentRunner(Runner):
    """Logs to `<run>/log_<time>.txt`, and leaves the config to `RunRecordHook`."""

    def build_logger(self, log_level: Union[int, str] = 'INFO', log_file: Optional[str] = None
                     ) -> MMLogger:
        """See `Runner.build_logger`."""
        if log_file is None:
            log_file = str(Path(self.work_dir) / f'log_{self.timestamp}.txt')
        return super().build_logger(log_level, log_file)

    def dump_config(self) -> None:
        """Nothing: a start that is refused must not replace the config of the run."""
