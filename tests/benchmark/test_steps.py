from torch.testing import assert_close

from mmcasvit.benchmark.steps import Stopwatch, step_table


def test_the_parts_of_a_stopwatch_add_up_to_the_whole():
    now = iter(range(100))
    watch = Stopwatch('cpu', clock=lambda: next(now))
    with watch.part('loop'):  # 0
        with watch.part('forward'):  # 1
            with watch.part('neck'):  # 2 to 3
                pass
        with watch.part('backward: heads'):  # 4 to 5
            watch.rename('backward: neck')  # 6
        taken = watch.take()
    assert sum(taken.values()) == watch.last - 1  # take() read the clock once, the end of the block again
    assert taken['neck'] == 1
    assert taken['forward'] == 2
    assert taken['backward: heads'] == taken['backward: neck'] == 1
    assert watch.take() == {'loop': 1}


def test_the_step_table_adds_up():
    steps = [{'data loading': 0.01, 'backbone': 0.03}, {'data loading': 0.02, 'backbone': 0.04}]
    rows = step_table(steps, ['data loading', 'backbone', 'neck'])
    assert [row['part'] for row in rows] == ['data loading', 'backbone', 'whole step']
    assert [row['share'] for row in rows] == ['30.0%', '70.0%', '100.0%']
    assert_close(rows[-1]['ms'], 50.0)
