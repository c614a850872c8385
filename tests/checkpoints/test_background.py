"""Copies that training does not tear, and a thread that writes them without losing an error."""
import os
import subprocess
import sys
import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from bevfusion_enhanced.checkpoints.background import BackgroundWriter
from bevfusion_enhanced.checkpoints.snapshot import Snapshot, tensor_sizes
from bevfusion_enhanced.checkpoints.storage import read_checkpoint, write_checkpoint
from bevfusion_enhanced.errors import CheckpointError


def test_a_copy_is_not_torn_by_the_next_step(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    checkpoint = {'state_dict': model.state_dict(), 'optimizer': optimizer.state_dict(),
                  'numbers': [np.arange(3)], 'meta': {'iter': 1}}
    write_checkpoint(checkpoint, tmp_path / 'before.pth')
    snapshot = Snapshot()
    snapshot.begin()
    copied = snapshot.copy(checkpoint)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    checkpoint['numbers'][0][:] = 9
    checkpoint['meta']['iter'] = 2
    write_checkpoint(copied, tmp_path / 'after.pth')
    before, after = (read_checkpoint(tmp_path / f'{name}.pth') for name in ('before', 'after'))
    torch.testing.assert_close(after['state_dict'], before['state_dict'], rtol=0, atol=0)
    torch.testing.assert_close(after['optimizer'], before['optimizer'], rtol=0, atol=0)
    assert after['numbers'][0].tolist() == [0, 1, 2] and after['meta'] == {'iter': 1}
    assert not torch.equal(model.state_dict()['0.weight'], after['state_dict']['0.weight'])


def test_copies_keep_what_they_are(tmp_path):
    weight = torch.arange(12.).reshape(3, 4)
    state = OrderedDict(a=weight, tied=weight, column=weight[:, 1], turned=weight.t(),
                        half=weight.half(), empty=torch.zeros(0, 2), scalar=torch.tensor(True))
    state._metadata = {'': {'version': 2}}
    snapshot = Snapshot()
    for _ in range(2):  # the second time in the memory of the first
        snapshot.begin()
        copied = snapshot.copy({'state_dict': state, 'pair': (1, [weight])})
        assert type(copied['state_dict']) is OrderedDict and type(copied['pair']) is tuple
        assert copied['state_dict']._metadata == state._metadata
        assert copied['state_dict']._metadata is not state._metadata
        for name, tensor in state.items():
            assert torch.equal(copied['state_dict'][name], tensor), name
            assert copied['state_dict'][name].dtype == tensor.dtype
            assert tensor.numel() == 0 or \
                copied['state_dict'][name].data_ptr() != tensor.data_ptr()
        tied = copied['state_dict']['tied']
        assert tied is copied['state_dict']['a'] is copied['pair'][1][0]


def test_what_does_not_change_can_be_copied_later():
    weight = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
    state = {'weight': weight, 'half': torch.randn(7).bfloat16(), 'empty': torch.zeros(0),
             'scalar': torch.tensor(3.), 'mean': torch.ones(4)}
    snapshot = Snapshot()
    for _ in range(2):
        snapshot.begin()
        unchanging = {state[name].data_ptr() for name in ('weight', 'half', 'scalar')}
        copied = snapshot.copy({'state_dict': state}, unchanging=unchanging)['state_dict']
        expected = {name: value.clone() for name, value in state.items()}
        state['mean'].add_(1)  # statistics go on in the forward
        snapshot.complete()
        for name, value in expected.items():
            assert torch.equal(copied[name], value), name
        state['weight'].add_(1)
        assert torch.equal(copied['weight'], expected['weight'])


def test_a_change_before_the_copy_is_complete_is_found():
    snapshot, weight = Snapshot(), torch.ones(3)
    snapshot.begin()
    snapshot.copy({'w': weight}, unchanging={weight.data_ptr()})
    weight.add_(1)
    with pytest.raises(CheckpointError, match='outside the optimizer'):
        snapshot.complete()
    snapshot.begin()
    snapshot.copy({'w': weight}, unchanging={weight.data_ptr()})
    snapshot.complete()


def test_who_waits_for_a_copy_takes_part_in_it():
    snapshot, weights = Snapshot(), [torch.full((3,), float(n)) for n in range(4)]
    began, may_end, copy_now = threading.Event(), threading.Event(), snapshot._copy_now
    copied_by = []

    def copy(item):
        copied_by.append(threading.current_thread().name)
        if copied_by[-1] == 'slow':
            began.set()
            may_end.wait(20)
        copy_now(item)

    snapshot._copy_now = copy
    snapshot.begin()
    copied = snapshot.copy({'w': weights}, unchanging={w.data_ptr() for w in weights})
    slow = threading.Thread(target=snapshot.complete, name='slow')
    slow.start()
    assert began.wait(20)
    threading.Timer(0.2, may_end.set).start()
    snapshot.help()
    torch.testing.assert_close(copied['w'], weights, rtol=0, atol=0)  # the slow one's, too
    for weight in weights:
        weight.add_(1)  # nobody minds any more
    slow.join(20)
    assert copied_by.count('slow') == 1 and len(copied_by) == 4
    snapshot.complete()


def test_nobody_waits_for_a_copy_that_failed():
    snapshot, weights = Snapshot(), [torch.ones(3), torch.ones(2)]
    snapshot.begin()
    snapshot.copy({'w': weights}, unchanging={w.data_ptr() for w in weights})

    def fail(item):
        raise RuntimeError('the device is gone')

    snapshot._copy_now = fail
    snapshot.help()
    with pytest.raises(RuntimeError, match='the device is gone'):
        snapshot.complete()


@pytest.mark.gpu
def test_what_lies_on_a_gpu_is_copied_beside_its_work():
    snapshot, weight = Snapshot(), torch.zeros(2 ** 22, device='cuda')
    product = torch.randn(4096, 4096, device='cuda')
    for _ in range(20):
        product = product @ product / 4096  # the copy has to wait for this
    weight.add_(product.flatten()[:2 ** 22])
    snapshot.begin()
    copied = snapshot.copy({'w': weight}, unchanging={weight.data_ptr()})
    snapshot.complete()
    assert torch.equal(copied['w'], weight.cpu())


def test_what_hooks_add_is_copied_and_the_rest_is_not_copied_twice():
    snapshot = Snapshot()
    snapshot.begin()
    live = torch.ones(3)
    copied = snapshot.copy({'w': torch.zeros(3), 'record': np.arange(2)})
    completed = snapshot.copy({**copied, 'w': live, 'old': copied['w']})
    live.zero_()
    assert completed['w'].tolist() == [1, 1, 1]
    assert completed['old'] is copied['w'] and completed['record'] is copied['record']


def test_memory_is_used_again():
    snapshot = Snapshot()
    state = {'a': torch.ones(100), 'b': torch.ones(100), 'c': torch.ones(7)}
    snapshot.reserve(tensor_sizes(state))
    places = set()
    for _ in range(3):
        snapshot.begin()
        places |= {tensor.data_ptr() for tensor in snapshot.copy(state).values()}
    assert len(places) == 3


def test_jobs_run_one_at_a_time_and_errors_come_once():
    writer = BackgroundWriter()
    running, order, release = [], [], threading.Event()

    def job(number, error=None):
        def run():
            running.append(number)
            release.wait(5)
            assert running == [number]
            running.clear()
            order.append(number)
            if error:
                raise error
        return run

    writer.submit(job(1, OSError('full')))
    assert writer.busy and writer.take_error() is None  # not yet
    release.set()
    writer.submit(job(2))
    writer.wait()
    assert order == [1, 2] and not writer.busy
    assert str(writer.take_error()) == 'full'
    assert writer.take_error() is None


def test_an_error_of_an_earlier_job_outlives_later_ones():
    writer = BackgroundWriter()

    def fail():
        raise OSError('first')

    writer.submit(fail)
    writer.submit(lambda: None)
    writer.wait()
    assert str(writer.take_error()) == 'first'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
def test_a_forked_process_has_nothing_to_wait_for():
    writer, release = BackgroundWriter(), threading.Event()
    writer.submit(lambda: release.wait(20))
    child = os.fork()
    if child == 0:
        writer.wait()
        if not writer.busy:
            writer.submit(lambda: None)  # and may write itself
            writer.wait()
            os._exit(5)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert writer.busy
    release.set()
    writer.wait()


EXIT = '''
import sys, time, types
package = types.ModuleType('bevfusion_enhanced')
package.__path__ = [{package!r}]
checkpoints = types.ModuleType('bevfusion_enhanced.checkpoints')
checkpoints.__path__ = [{package!r} + '/checkpoints']
sys.modules.update({{'bevfusion_enhanced': package, 'bevfusion_enhanced.checkpoints': checkpoints}})
from bevfusion_enhanced.checkpoints.background import BackgroundWriter
def job():
    time.sleep(0.3)
    open({mark!r}, 'w').close()
    raise OSError('disk full')
writer = BackgroundWriter()
writer.submit(job)
raise KeyError('training broke')
'''


def test_the_process_ends_after_the_last_write_and_tells_its_error(tmp_path):
    import bevfusion_enhanced
    code = EXIT.format(package=bevfusion_enhanced.__path__[0], mark=str(tmp_path / 'mark'))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (tmp_path / 'mark').exists()
    assert done.returncode == 1 and 'training broke' in done.stderr
    assert 'disk full' in done.stderr
