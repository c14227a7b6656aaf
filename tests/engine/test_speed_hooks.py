import multiprocessing
import platform
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, ChannelsLastHook, CompileHook, KeepMemoryHook
from mmcasvit.benchmark.memory import resident


class RoIModel(nn.Module):
    """A backbone whose first output is cut into regions by mmcv's operator."""

    def __init__(self, roi_align):
        super().__init__()
        self.backbone = CASViT(dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24)), out_indices=0)
        self.roi_align = roi_align

    def forward(self, x, rois):
        return self.roi_align(self.backbone(x)[0], rois)


def test_channels_last_changes_the_format_and_not_the_numbers():
    roi_align = pytest.importorskip('mmcv.ops').RoIAlign
    torch.manual_seed(0)
    model = RoIModel(roi_align(output_size=7, spatial_scale=1 / 4, sampling_ratio=0)).eval()
    x, rois = torch.randn(2, 3, 64, 96), torch.tensor([[0, 4.0, 8.0, 40.0, 60.0], [1, 10.0, 0.0, 90.0, 30.0]])
    wanted = model(x, rois)
    hook, runner = ChannelsLastHook(), SimpleNamespace(model=model)
    for moment in (hook.before_train, hook.before_val, hook.before_test):
        moment(runner)
    assert len(model.roi_align._forward_pre_hooks) == 1
    feature = model.backbone(x)[0]
    assert feature.is_contiguous(memory_format=torch.channels_last)
    assert not feature.is_contiguous()
    assert_close(model(x, rois), wanted)


def test_compiling_changes_neither_names_nor_numbers():
    model = nn.Module()
    model.backbone = CASViT(dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24))).eval()
    x, names, compiled = torch.randn(1, 3, 64, 64), list(model.state_dict()), []
    wanted = model.backbone(x)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    CompileHook(backend=backend).before_run(SimpleNamespace(model=model))
    assert_close(model.backbone(x), wanted)
    assert len(compiled) == 1, 'the backbone should be one graph'
    assert list(model.state_dict()) == names


def test_compiling_a_model_without_a_backbone_is_an_error():
    with pytest.raises(AttributeError, match='none of the parts backbone, neck'):
        CompileHook().before_run(SimpleNamespace(model=nn.Linear(2, 2)))


@pytest.mark.parametrize('fused', [False, True])
def test_the_state_of_a_resumed_optimizer_follows_the_format_of_the_weights(fused):
    rng = torch.Generator().manual_seed(0)
    weight, gradients = torch.randn(6, 4, 3, 3, generator=rng), torch.randn(3, 6, 4, 3, 3, generator=rng)

    def trained(change):
        conv = nn.Conv2d(4, 6, 3, bias=False)
        conv.weight.data = weight.clone()
        wrapper = OptimWrapper(torch.optim.AdamW(conv.parameters(), lr=0.1, fused=fused))
        for step, gradient in enumerate(gradients):
            if step == 1:
                change(SimpleNamespace(model=conv, optim_wrapper=wrapper))
            conv.weight.grad = torch.empty_like(conv.weight).copy_(gradient)
            wrapper.optimizer.step()
        return conv.weight

    found = trained(ChannelsLastHook().before_train)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, trained(lambda runner: None))


def test_the_state_of_an_optimizer_is_saved_in_the_usual_format():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    wrapper = OptimWrapper(torch.optim.AdamW(conv.parameters(), fused=True))
    wrapper.update_params(conv(torch.randn(1, 4, 8, 8)).sum())
    checkpoint = dict(optimizer=wrapper.state_dict())
    ChannelsLastHook().before_save_checkpoint(SimpleNamespace(), checkpoint)
    average, saved = wrapper.optimizer.state[conv.weight]['exp_avg'], checkpoint['optimizer']['state'][0]['exp_avg']
    assert saved.is_contiguous()
    assert not average.is_contiguous()
    assert_close(saved, average, rtol=0, atol=0)


def _memory_that_stays(keep, answer):
    torch.set_num_threads(1)  # threads do not survive a fork
    if keep:
        KeepMemoryHook().before_run(SimpleNamespace())
    block = torch.ones(2**26, dtype=torch.uint8)
    held = resident('VmRSS')
    del block
    answer.put(resident('VmRSS') / held)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_memory_stays_in_the_process():
    context = multiprocessing.get_context('spawn')  # what a long process has freed would be used again
    answers = {}
    for keep in (False, True):
        answer = context.SimpleQueue()
        process = context.Process(target=_memory_that_stays, args=(keep, answer))
        process.start()
        answers[keep] = answer.get()
        process.join()
    assert answers[True] > 0.98
    assert answers[False] < answers[True] - 0.02
