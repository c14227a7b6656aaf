"""Blocks of the deploy form as runtimes compute them fastest: with query and key apart.

In PyTorch, the deploy form computes query and key side by side, which takes fewer operators. Runtimes split the result
into two maps and copy both for that, OpenVINO in its reference code, which is slow.
"""

from torch import Tensor, nn

from mmcasvit.models.deployed_casvit import DeployedBlock, DeployedCASViT, DeployedStage
from mmcasvit.models.folding import conv_like, output_channels


class GatedConv(nn.Module):
    """Query or key of a block, after its gates.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        block: Block that computes both.
        part: 0 for the query, 1 for the key.
    """

    def __init__(self, block: DeployedBlock, part: int):
        super().__init__()
        width = block.query_key.out_channels // 2
        start, stop = part * width, (part + 1) * width
        gates, channel_gate = block.spatial_gates, block.channel_gate[0]
        self.conv = output_channels(block.query_key, start, stop)
        self.spatial_gate = nn.Sequential(
            output_channels(gates.depthwise, start, stop),
            nn.ReLU(),
            conv_like(gates.proj, gates.proj.weight[part : part + 1, start:stop], None),
            nn.Sigmoid(),
        )
        self.channel_gate = nn.Sequential(output_channels(channel_gate, start, stop), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * self.spatial_gate(x)
        return x * self.channel_gate(x.mean((2, 3), keepdim=True))


class SeparateBlock(nn.Module):
    """Block of the deploy form whose query and key are computed apart.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, block: DeployedBlock):
        super().__init__()
        self.local = nn.Sequential(*block.local, block.local_proj)
        self.query, self.key, self.value = GatedConv(block, 0), GatedConv(block, 1), block.value
        self.dwc, self.proj = block.dwc, block.proj
        self.mlp = nn.Sequential(block.fc1, block.act, block.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)
        x = x + self.proj(self.dwc(self.query(x) + self.key(x)) * self.value(x))
        return x + self.mlp(x)


def separate_blocks(model: nn.Module) -> None:
    """Replace the blocks of every deploy form in a model by :class:`SeparateBlock`, in place."""
    for part in model.modules():
        if isinstance(part, DeployedCASViT):
            for i, stage in enumerate(part.stages):
                if isinstance(stage, DeployedStage):
                    part.stages[i] = nn.Sequential(*map(SeparateBlock, stage))
