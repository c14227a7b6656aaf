import pytest
import torch
from torch.testing import assert_close

from mmcasvit.benchmark import comparison
from mmcasvit.benchmark.comparison import Plan, copy_key, matmul_key, measure, rows_of
from mmcasvit.benchmark.counts import Cost
from mmcasvit.benchmark.memory import Memory
from mmcasvit.benchmark.summary import rates_in_words, table_row
from mmcasvit.benchmark.variants import Variant
from mmcasvit.utils.errors import NotApplicable, UsageError
from mmcasvit.utils.tables import markdown, split_constant

SAMPLES = {
    Variant('xs'): [0.2, 0.4, 0.2],
    Variant('xs', form='deploy'): [0.1, 0.2, 0.1],
    Variant('m', form='deploy'): [0.4, 0.8, 0.4],
}


def rows_of_samples(baseline):
    variant = Variant('xs')
    rates = {matmul_key(variant): [100.0, 50.0, 100.0], copy_key(variant): [8.0, 4.0, 8.0]}
    costs = {variant: Cost(params=7, macs=5, traffic=1) for variant in SAMPLES}
    memory = {Variant('xs'): Memory(weights=3, above=4), Variant('xs', form='deploy'): None}
    return rows_of(SAMPLES, rates, costs, memory, {}, baseline)


def test_rows_follow_from_the_samples():
    eager, deploy, other = rows_of_samples(dict(form='eager'))
    assert (eager['speedup'].median, deploy['speedup'].median, other['speedup']) == (1.0, 2.0, None)
    assert deploy['images_per_second'] == 10.0
    # 5 multiply-adds at 100 per second take 50 ms. In the slow round, the rate of the machine is half as high too.
    assert_close(deploy['matmul_ms'], 50.0)
    assert_close(deploy['matmul_reached'].median, 0.5)
    assert_close(deploy['matmul_reached'].high, 0.5)
    assert_close(deploy['copy_reached'].median, 1.25)
    assert deploy['bound_ms'] == deploy['copy_ms'] == 125.0
    assert (eager['peak_bytes'], deploy['peak_bytes'], other['peak_bytes']) == (7, None, None)
    assert [row['speedup'].median for row in rows_of_samples(dict(model='xs', form='deploy'))] == [0.5, 1.0, 0.25]


def test_the_table_shows_what_varies():
    rows = rows_of_samples(dict(form='eager'))
    constant, varying = split_constant(rows, ['model', 'form', 'size'])
    assert (constant, varying) == ({'size': '512x512'}, ['model', 'form'])
    lines = markdown([table_row(row, varying, 'eager') for row in rows]).splitlines()
    assert lines[0].startswith('| model | form | params, M | GMACs | ms | quartiles | images/s | speed-up over eager |')
    assert lines[3] == '| xs | deploy | 0.00 | 5e-09 | 100 | 100 to 150 | 10 | 2.00 | 50 (50%) | 125 (125%) | - |'
    assert len(lines) == 2 + len(rows)


def test_products_that_are_slower_than_in_fp32_are_no_limit():
    variant = Variant('xs', form='openvino', precision='int8')
    costs = {variant: Cost(params=7, macs=5, traffic=1)}
    [row] = rows_of({variant: [0.1]}, {copy_key(variant): [20e6]}, costs, {}, {}, {})
    assert (row['matmul_ms'], row['matmul_reached'], row['bound_ms']) == (None, None, row['copy_ms'])
    assert '| 10 | 1.00 | - | 5e-05 (0%) | - |' in markdown([table_row(row, [], 'eager')])
    assert rates_in_words([row]).endswith(
        "none of arithmetic, since PyTorch's products are slower than in fp32 (int8, cpu, 1 thread)"
    )


def test_a_variant_that_fails_is_left_out_with_its_reason(monkeypatch):
    good, bad = (Variant('xs', size=(64, side)) for side in (64, 96))
    prepare = comparison.prepare

    def prepare_one(variant, **options):
        if variant == bad:
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate')
        return prepare(variant, **options)

    monkeypatch.setattr(comparison, 'prepare', prepare_one)
    plan = Plan(rounds=1, warmup=1, least_seconds=0, memory=False)
    rows, left_out = measure([bad, good], plan, dict(form='eager'))
    assert [row['size'] for row in rows] == ['64x64']
    assert left_out == [f'{bad}: OutOfMemoryError: CUDA out of memory.']
    with pytest.raises(UsageError, match=r'nothing to measure: .*out of memory'):
        measure([bad], plan, dict(form='eager'))


def test_models_that_a_form_refuses_are_one_line(monkeypatch):
    prepare = comparison.prepare

    def prepare_one(variant, **options):
        if variant.form == 'onnxruntime':
            raise UsageError('int8 would not keep its outputs.\nMore')
        if variant.form == 'deploy':
            raise NotApplicable('only a CAS-ViT has a deploy form')
        return prepare(variant, **options)

    monkeypatch.setattr(comparison, 'prepare', prepare_one)
    variants = [Variant(name, form=form, size=(64, 64)) for name in ('xs', 's') for form in ('eager', 'deploy')]
    variants += [Variant('xs', form='onnxruntime', size=(64, 64))]
    rows, left_out = measure(variants, Plan(rounds=1, warmup=1, least_seconds=0, memory=False), dict(form='eager'))
    assert [(row['model'], row['form']) for row in rows] == [('xs', 'eager'), ('s', 'eager')]
    assert left_out == [
        'xs, s deploy: only a CAS-ViT has a deploy form',
        'xs infer onnxruntime fp32 cpu threads=1 batch=1 64x64: int8 would not keep its outputs.',
    ]


def test_a_wrong_name_is_an_error():
    plan = Plan(rounds=1, warmup=1, least_seconds=0, memory=False)
    with pytest.raises(UsageError, match='xxs'):
        measure([Variant('xxs', size=(64, 64)), Variant('xs', size=(64, 64))], plan, dict(form='eager'))
