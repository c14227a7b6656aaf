"""COCO's evaluation by faster-coco-eval: the same numbers as by pycocotools, and the option that chooses it."""

import importlib.util

import pytest
from mmengine.config import Config

from mmcasvit.apis import options
from mmcasvit.apis.options import use_fast_evaluation
from mmcasvit.benchmark.coco_eval import evaluate_both
from mmcasvit.utils.errors import UsageError

pytest.importorskip('mmdet.evaluation')


@pytest.mark.skipif(importlib.util.find_spec('faster_coco_eval') is None, reason='faster-coco-eval is not installed')
def test_both_libraries_give_the_same_numbers():
    told = []
    rows, difference = evaluate_both(300, told.append)
    assert told[1:] == ['evaluating by pycocotools', 'evaluating by faster-coco-eval']
    assert [row['evaluation'] for row in rows] == ['pycocotools', 'faster-coco-eval']
    assert rows[0]['AP'] > 0.02
    assert difference < 1e-9


@pytest.mark.skipif(importlib.util.find_spec('faster_coco_eval') is not None, reason='faster-coco-eval is installed')
def test_a_missing_library_is_one_line():
    with pytest.raises(UsageError, match=r'^faster-coco-eval is not installed: pip install "mmcasvit\[coco\]"$'):
        evaluate_both(1)


def test_the_option_changes_the_metric_of_both_splits(monkeypatch):
    monkeypatch.setattr(options.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match='--fast-eval: faster-coco-eval is not installed'):
        use_fast_evaluation(Config({}))
    monkeypatch.setattr(options.importlib.util, 'find_spec', lambda name: name)
    with pytest.raises(UsageError, match='does not evaluate with'):
        use_fast_evaluation(Config(dict(val_evaluator=dict(type='VOCMetric'))))
    cfg = Config(dict(val_evaluator=dict(type='CocoMetric', ann_file='a'), test_evaluator=[dict(type='CocoMetric')]))
    if options.METRICS.get('mmdet.FasterCocoMetric') is None:
        pytest.skip('this mmdet has no such metric')
    use_fast_evaluation(cfg)
    assert cfg.val_evaluator == dict(type='mmdet.FasterCocoMetric', ann_file='a')
    assert cfg.test_evaluator == [dict(type='mmdet.FasterCocoMetric')]
