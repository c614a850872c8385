"""Mistakes of the user end in one line; everything else keeps its traceback."""
import pytest
from mmdet3d.registry import MODELS
from torch.utils.data import DataLoader

from bevfusion_enhanced.engine.commands.cli import run_cli
from bevfusion_enhanced.errors import ConfigError


def raising(error):
    def main():
        raise error

    return main


def only_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_success_answers_zero(capsys):
    assert run_cli(lambda: 3) == 0
    assert capsys.readouterr().err == ''


def test_user_error_is_one_line(capsys):
    assert run_cli(raising(ConfigError('config a.py is missing;\n  write it'))) == 2
    assert only_line(capsys) == 'error: config a.py is missing; write it'


def test_error_in_a_worker_of_a_data_loader(capsys, toy_task):
    loader = DataLoader(toy_task.ToyDataset(broken=3), num_workers=1)
    assert run_cli(lambda: list(loader)) == 2
    assert only_line(capsys) == 'error: sample 3: LiDAR file a.bin is cut short; copy it again'


def test_unknown_type_in_a_config(capsys):
    assert run_cli(lambda: MODELS.build(dict(type='ToyModle'))) == 2
    assert "'ToyModle', which is not registered as a model" in only_line(capsys)


def test_unknown_argument_in_a_config(capsys):
    assert run_cli(lambda: MODELS.build(dict(type='ToyModel', witdh=3))) == 2
    line = only_line(capsys)
    assert 'config of ToyModel' in line and "'witdh'" in line


def test_bugs_keep_their_traceback(toy_task):
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 / 0)
    with pytest.raises(TypeError):
        run_cli(lambda: toy_task.ToyModel(witdh=3))
    with pytest.raises(KeyError):
        run_cli(raising(KeyError('x')))


def test_interrupt(capsys):
    assert run_cli(raising(KeyboardInterrupt())) == 130
    assert only_line(capsys) == 'error: interrupted'
