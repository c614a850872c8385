"""Weighted sums of rows, there and back."""
import torch

from bevfusion_enhanced.ops.row_sums import row_sums, runs_eagerly_on_cpu, sum_rows


def some_sums(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    sums, rows = (torch.randint(0, n, (40,), generator=generator) for n in (9, 6))
    factors = torch.randn(40, generator=generator)
    matrix = torch.zeros(10, 7).index_put_((sums, rows), factors, accumulate=True)
    return row_sums(sums=sums, rows=rows, factors=factors, num_sums=10), matrix


def test_they_are_a_product_with_a_matrix_whose_terms_come_in_any_order():
    plan, matrix = some_sums()
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plan.of(values), matrix @ values)
    assert (plan.of(values)[9] == 0).all()  # no term


def test_transposed_twice_they_are_themselves():
    plan, matrix = some_sums()
    back = plan.transposed(num_rows=7)
    torch.testing.assert_close(back.of(torch.eye(10)), matrix.t())
    torch.testing.assert_close(back.transposed(num_rows=10).of(torch.eye(7)), matrix)


def test_the_gradient_is_the_way_back_in_any_layout():
    plan, matrix = some_sums()
    values = torch.randn(5, 7).t().requires_grad_()
    towards = torch.randn(5, 10).t()
    sum_rows(values, plan, plan.transposed(num_rows=7)).backward(towards)
    torch.testing.assert_close(values.grad, matrix.t() @ towards)


def test_a_call_that_is_recorded_does_not_run_eagerly():
    seen = []
    assert runs_eagerly_on_cpu(torch.zeros(1))
    assert not runs_eagerly_on_cpu(torch.zeros(1, device='meta'))
    torch.jit.trace(lambda x: seen.append(runs_eagerly_on_cpu(x)) or x, torch.zeros(1),
                    check_trace=False)
    assert seen == [False]
