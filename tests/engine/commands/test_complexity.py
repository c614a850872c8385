"""How large a model is, against a count by hand."""
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from bevfusion_enhanced.engine.commands.complexity import complexity_of


class Small(BaseModel):
    """A convolution of 3 to 8 channels, a linear layer of 8 to 5, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({'map': nn.Conv2d(3, 8, 3, padding=1, bias=False)})
        self.linear, self.frozen = nn.Linear(8, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.frozen.requires_grad_(False)

    def forward(self, x, mode='tensor'):
        return self.frozen(self.linear(self.heads['map'](x).mean(dim=(2, 3))))


def test_operations_and_parameters_are_those_of_a_count_by_hand():
    model = Small().train()
    found = complexity_of(model, dict(x=torch.randn(1, 3, 10, 20)))
    conv, linear, frozen = 2 * 10 * 20 * 8 * 27, 2 * 8 * 5, 2 * 5 * 5
    assert found.gflops == pytest.approx((conv + linear + frozen) / 1e9)
    assert found.by_module['heads.map'] == pytest.approx(conv / 1e9)
    assert found.parameters == 8 * 27 + 40 + 25 and found.trained == 8 * 27 + 40
    assert model.training
