"""What a start means for the run that is there already."""
import pytest

from bevfusion_enhanced.checkpoints import write_checkpoint
from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.experiments.run_files import RunFiles
from bevfusion_enhanced.experiments.start import (
    BEGIN,
    GO_ON,
    NOTHING,
    plan_start,
    set_later_aside,
    set_run_aside,
)
from bevfusion_enhanced.experiments.status import (
    FINISHED,
    KILLED,
    RUNNING,
    Status,
    locked,
    write_status,
)

CONFIG = dict(model=dict(type='BEVFusion', fuser=dict(type='ConvFuser', out_channels=64)),
              optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
              train_cfg=dict(max_epochs=3))


@pytest.fixture
def files(tmp_path):
    """A run of three epochs of which two are done."""
    from mmengine.config import Config
    files = RunFiles(tmp_path / 'run')
    for epoch in (1, 2):
        write_checkpoint(dict(meta=dict(epoch=epoch, iter=10 * epoch), state_dict={}),
                         files.checkpoints / f'epoch_{epoch}.pth')
    files.config.write_text(Config(CONFIG).pretty_text)
    files.history.write_text('{"load_from": ["a.pth"]}\n')
    write_status(files, Status(state=RUNNING, epoch=2, max_epochs=3))
    return files


def plan(files, config=CONFIG, **options):
    return plan_start(files, config, checkpoints=files.checkpoints, **options)


def changed(**model):
    return {**CONFIG, 'model': {**CONFIG['model'], **model}}


def test_an_empty_folder_is_begun_in(tmp_path):
    start = plan(RunFiles(tmp_path / 'none'), load_from=['a.pth'])
    assert start.kind == BEGIN and start.checkpoint is None
    assert plan(RunFiles(tmp_path / 'none'), checkpoint='b.pth').kind == GO_ON


def test_the_same_training_goes_on(files):
    assert plan(files).kind == GO_ON
    assert plan(files, load_from=['a.pth']).kind == GO_ON
    faster = {**CONFIG, 'optim_wrapper': dict(optimizer=dict(type='AdamW', lr=0.2))}
    assert plan(files, faster).kind == GO_ON
    assert plan(files, checkpoint='epoch_1.pth').checkpoint == 'epoch_1.pth'


def test_settings_that_change_under_the_default_tag_are_warned_of(files):
    faster = {**CONFIG, 'optim_wrapper': dict(optimizer=dict(type='AdamW', lr=0.2))}
    longer = {**CONFIG, 'train_cfg': dict(max_epochs=5)}
    named = plan(files, faster)
    default = RunFiles(files.folder.rename(files.folder.with_name('default')))
    [_, warning] = plan(default, faster).notes
    assert 'optim_wrapper.optimizer.lr: 0.1 -> 0.2' in warning and '--extra-tag' in warning
    for start in (named, plan(default), plan(default, longer)):
        assert start.kind == GO_ON and len(start.notes) == 1


def test_another_network_is_refused_by_name(files):
    wider = changed(fuser=dict(type='ConvFuser', out_channels=128))
    with pytest.raises(ConfigError, match=r'model\.fuser\.out_channels.*--extra-tag NEW'):
        plan(files, wider)


def test_other_weights_are_refused(files):
    with pytest.raises(ConfigError, match='began from a.pth.*would not load b.pth'):
        plan(files, load_from=['b.pth'])


def test_a_finished_run_has_nothing_to_do_unless_more_is_asked_for(files):
    write_status(files, Status(state=FINISHED, epoch=3, max_epochs=3))
    start = plan(files)
    assert start.kind == NOTHING and '3 of 3 epochs' in start.notes[0]
    assert plan(files, {**CONFIG, 'train_cfg': dict(max_epochs=5)}).kind == GO_ON
    assert plan(files, checkpoint='epoch_1.pth').kind == GO_ON


def test_later_checkpoints_are_set_aside_with_their_sums(files):
    assert set_later_aside(files.checkpoints, str(files.checkpoints / 'epoch_2.pth')) == []
    moved = set_later_aside(files.checkpoints, str(files.checkpoints / 'epoch_1.pth'))
    assert [path.name for path in moved] == ['epoch_2.pth']
    assert moved[0].with_name('epoch_2.pth.sha256').is_file()
    assert not (files.checkpoints / 'epoch_2.pth.sha256').exists()
    assert set_later_aside(files.checkpoints, str(files.folder / 'other.pth')) == []


def test_a_run_at_work_is_not_set_aside(files):
    with locked(files), pytest.raises(ConfigError, match='still running'):
        set_run_aside(files)
    moved = set_run_aside(files)
    assert not files.folder.exists() and (moved / 'checkpoints/epoch_2.pth').is_file()


def test_a_run_that_ended_without_a_word_was_killed(files):
    from bevfusion_enhanced.experiments.status import read_status
    assert read_status(files).state == KILLED
