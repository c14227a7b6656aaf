from mmcasvit.benchmark.operator_times import operator_table, time_operators
from mmcasvit.benchmark.preparation import count_variant, prepare
from mmcasvit.benchmark.variants import Variant


def test_operators_are_grouped_and_their_arithmetic_adds_up():
    prepared = prepare(Variant('xs', size=(64, 64)))
    groups = time_operators(prepared.run, 'cpu')
    assert sum(group.macs for group in groups.values()) == count_variant(Variant('xs', size=(64, 64))).macs
    assert groups['convolutions 3x3'].calls == 2 + 3
    assert groups['convolutions 3x3, depthwise'].calls == 10 * 5
    assert groups['norms'].calls == 4 + 2 + 3 + 10 * 5
    rows = operator_table([groups, groups], macs_per_second=1e12, bytes_per_second=1e3)
    assert {row['limited by'] for row in rows} == {'memory'}
    assert rows[0]['ms'] == max(row['ms'] for row in rows)
