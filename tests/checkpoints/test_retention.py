"""What lies in a run's folder: the newest that is whole, and what may be deleted."""
from pathlib import Path

import pytest
import torch

from bevfusion_enhanced.checkpoints.folder import find_newest, iterations_of, list_checkpoints
from bevfusion_enhanced.checkpoints.retention import plan_prune, prune
from bevfusion_enhanced.checkpoints.sidecar import sidecar_of
from bevfusion_enhanced.checkpoints.storage import write_bytes, write_checkpoint
from bevfusion_enhanced.errors import CheckpointError


def save(path, iteration, epoch=0, **entries):
    write_checkpoint({'meta': {'iter': iteration, 'epoch': epoch},
                      'state_dict': {'w': torch.full((500,), float(iteration))}, **entries}, path)


@pytest.fixture
def folder(tmp_path):
    """Epochs of 10 iterations, a stop in the fourth."""
    for epoch in (1, 2, 3):
        save(tmp_path / f'epoch_{epoch}.pth', 10 * epoch, epoch)
    save(tmp_path / 'iter_34.pth', 34, 3)
    save(tmp_path / 'best_mIoU_epoch_2.pth', 20, 2)
    write_bytes(b'elsewhere/iter_34.pth', tmp_path / 'last_checkpoint')
    return tmp_path


def cut_tail(data):
    return data[:-30]


def flip_bit(data):
    place = data.find(torch.full((500,), 34.).numpy().tobytes()) + 100
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1:]


def empty(data):
    return b''


@pytest.mark.parametrize('sums', [True, False])
@pytest.mark.parametrize('damage, says', [
    (cut_tail, 'damaged, cut short'), (flip_bit, 'damaged'), (empty, 'is empty')])
def test_damage_is_found_and_told(folder, damage, says, sums):
    path = folder / 'iter_34.pth'
    path.write_bytes(damage(path.read_bytes()))
    if not sums:
        sidecar_of(path).unlink()
    skipped = []
    found = find_newest(folder, skipped=skipped.append)
    assert found.path.name == 'epoch_3.pth' and found.iteration == 30
    assert len(skipped) == 1 and 'iter_34.pth' in skipped[0] and says in skipped[0]


def test_the_furthest_comes_first_whatever_its_name(folder):
    assert find_newest(folder, skipped=pytest.fail).path.name == 'iter_34.pth'
    save(folder / 'epoch_4.pth', 40, 4)
    save(folder / 'iter_40.pth', 40, 3)  # the same iteration, before the epoch was finished
    assert find_newest(folder, skipped=pytest.fail).path.name == 'epoch_4.pth'


def test_files_that_no_run_wrote_are_left_out(folder):
    for name in ('epoch_99.pth.tmp', '.epoch_99.pth.77.tmp', 'epoch_x.pth', 'my_epoch_99.pth'):
        (folder / name).write_bytes((folder / 'epoch_1.pth').read_bytes())
    assert [path.name for path in list_checkpoints(folder)] == [
        'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'iter_34.pth']
    assert find_newest(folder, skipped=pytest.fail).iteration == 34


def test_names_of_a_run_of_its_own(folder):
    save(folder / 'toy.v1_50.pth', 50)
    save(folder / 'toyXv1_60.pth', 60)
    assert find_newest(folder, skipped=pytest.fail, template='toy.v1_{}.pth').iteration == 50
    assert find_newest(folder, skipped=pytest.fail).iteration == 34


def test_what_cannot_be_resumed_is_said(folder, tmp_path_factory):
    write_checkpoint({'state_dict': {}}, folder / 'epoch_9.pth')
    skipped = []
    assert find_newest(folder, skipped=skipped.append).iteration == 34
    assert 'does not say how far' in skipped[0]
    with pytest.raises(CheckpointError, match='--load-from'):
        iterations_of(folder / 'epoch_9.pth')
    assert find_newest(tmp_path_factory.mktemp('none'), skipped=pytest.fail) is None
    assert find_newest(folder / 'missing', skipped=pytest.fail) is None


def names(items):
    return [item.path.name for item in items]


def test_plan_keeps_the_best_the_newest_and_the_last(folder):
    write_bytes(b'run/epoch_1.pth', folder / 'last_checkpoint')
    before = sorted(folder.iterdir())
    plan = plan_prune(folder)
    assert names(plan.delete) == ['epoch_2.pth', 'epoch_3.pth']
    assert {item.path.name: item.reason for item in plan.keep} == {
        'iter_34.pth': 'newest', 'epoch_1.pth': 'named by last_checkpoint',
        'best_mIoU_epoch_2.pth': 'best'}
    sizes = [(folder / name).stat().st_size for item in plan.delete
             for name in (item.path.name, f'{item.path.name}.sha256')]
    assert plan.bytes_freed == sum(sizes) > 4000
    assert sorted(folder.iterdir()) == before
    assert [path.name for path in prune(plan)] == ['epoch_2.pth', 'epoch_3.pth']
    assert set(before) - set(folder.iterdir()) == {
        folder / name for name in ('epoch_2.pth', 'epoch_2.pth.sha256', 'epoch_3.pth',
                                   'epoch_3.pth.sha256')}
    assert not plan_prune(folder).delete


def test_a_runs_folder_stands_for_that_of_its_checkpoints(tmp_path):
    inside = tmp_path / 'run' / 'checkpoints'
    for epoch in (1, 2, 3):
        save(inside / f'epoch_{epoch}.pth', 10 * epoch, epoch)
    write_bytes(b'elsewhere/epoch_1.pth', tmp_path / 'run' / 'last_checkpoint')
    for folder in (tmp_path / 'run', inside):
        plan = plan_prune(folder)
        assert [item.path for item in plan.delete] == [inside / 'epoch_2.pth']
        assert [(item.path.name, item.reason) for item in plan.keep] == [
            ('epoch_1.pth', 'named by last_checkpoint'), ('epoch_3.pth', 'newest')]


def test_a_best_checkpoint_of_any_name_is_kept(folder):
    save(folder / 'iter_40.pth', 40, message_hub={'runtime_info': {
        'best_ckpt': '/old/place/epoch_2.pth', 'best_score': 1}})
    assert names(plan_prune(folder).delete) == ['epoch_1.pth', 'epoch_3.pth'] or \
        names(plan_prune(folder).delete) == ['epoch_1.pth', 'epoch_3.pth', 'iter_34.pth']
    reasons = {item.path.name: item.reason for item in plan_prune(folder).keep}
    assert reasons['epoch_2.pth'] == 'best' and reasons['iter_40.pth'] == 'newest'


def test_damaged_ones_count_as_nothing_kept(folder):
    (folder / 'iter_34.pth').write_bytes(b'')
    (folder / 'last_checkpoint').unlink()
    plan = plan_prune(folder, keep=2)
    assert names(plan.delete) == ['epoch_1.pth', 'iter_34.pth']
    assert [item.reason for item in plan.delete] == ['older than the newest 2', 'cannot be used']
    assert 'iter_34.pth is empty' in plan.skipped[0]


def test_where_nothing_is_whole_nothing_is_deleted(folder):
    for path in list_checkpoints(folder):
        path.write_bytes(path.read_bytes()[:50])
    plan = plan_prune(folder)
    assert not plan.delete and len(plan.skipped) == 4


def test_rests_are_deleted(folder):
    (folder / '.epoch_4.pth.999999999.tmp').write_bytes(b'half')
    (folder / 'epoch_7.pth.sha256').write_text('0' * 64 + '  epoch_7.pth\n')
    plan = plan_prune(folder, keep=9)
    assert {item.path.name: item.reason for item in plan.delete} == {
        '.epoch_4.pth.999999999.tmp': 'unfinished',
        'epoch_7.pth.sha256': 'sums of a file that is gone'}
    prune(plan)
    assert not list(folder.glob('.*')) and not (folder / 'epoch_7.pth.sha256').exists()


def test_a_plan_that_no_longer_holds_is_not_carried_out(folder):
    plan = plan_prune(folder)
    (folder / 'iter_34.pth').unlink()
    with pytest.raises(CheckpointError, match='iter_34.pth was to be kept and is gone'):
        prune(plan)
    assert (folder / 'epoch_3.pth').exists()


def test_bad_requests(tmp_path):
    with pytest.raises(CheckpointError, match='not a folder'):
        plan_prune(tmp_path / 'none')
    with pytest.raises(CheckpointError, match='keep is 0'):
        plan_prune(Path(tmp_path), keep=0)
