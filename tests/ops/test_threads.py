"""The number of threads is what it was before, whatever happened in between."""
import pytest
import torch

from bevfusion_enhanced.ops.threads import one_thread, use_threads_in_backward


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_inside_and_as_many_as_before_after_an_error() -> None:
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_backward_switches_between_the_two_marks() -> None:
    seen = {}
    x = torch.ones(3, requires_grad=True)
    first = x * 2
    use_threads_in_backward(first, 2)
    inner = first * 3
    inner.register_hook(lambda grad: seen.update(inner=torch.get_num_threads()))
    last = inner * 4
    use_threads_in_backward(last, 1)
    x.register_hook(lambda grad: seen.update(x=torch.get_num_threads()))
    last.sum().backward()
    assert seen == dict(inner=1, x=2)
    torch.testing.assert_close(x.grad, torch.full((3,), 24.0))


def test_a_tensor_without_gradient_is_left_alone() -> None:
    use_threads_in_backward(torch.ones(2), 1)
    assert torch.get_num_threads() == 2
