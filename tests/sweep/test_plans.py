"""Variants are divided so that every corrupted image has its clean one in the same batch."""

from hypothesis import given
from hypothesis import strategies as st

from overfocus.sweep.reading import plan_pairs


def test_several_images_share_a_batch():
    assert plan_pairs(5, 16).images == 3
    assert plan_pairs(5, 16).batches == ((0, 1, 2, 3, 4),)


def test_a_large_group_is_split_evenly():
    plan = plan_pairs(8, 6)
    assert plan.images == 1
    assert plan.batches == ((0, 1, 2, 3, 4), (0, 5, 6, 7))


@given(variants=st.integers(1, 100), batch_size=st.integers(1, 130))
def test_every_variant_once_beside_its_clean_one(variants, batch_size):
    plan = plan_pairs(variants, batch_size)
    assert all(members[0] == 0 for members in plan.batches)
    assert [0, *(member for members in plan.batches for member in members[1:])] == list(range(variants))
    largest = max(len(members) for members in plan.batches) * plan.images
    assert largest <= max(batch_size, min(2, variants))


def test_two_four_and_eight_processes_get_the_same_number_of_shards():
    shards = plan_pairs(6, 32).shards(64)  # 5 images of 6 variants fill a batch of 32: 13 shards would be 7 and 6
    assert [len(shard) for shard in shards] == [4] * 16


@given(variants=st.integers(1, 12), batch_size=st.integers(1, 64), items=st.integers(0, 300))
def test_shards_hold_every_item_once_and_no_more_than_fit(variants, batch_size, items):
    plan = plan_pairs(variants, batch_size)
    shards = plan.shards(items)
    sizes = [len(shard) for shard in shards]
    assert [item for shard in shards for item in shard] == list(range(items))
    assert max(sizes, default=0) <= plan.images
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(shards) <= 4 or len(shards) % 8 == 0 or sizes == [1] * items
