import torch
from hypothesis import given
from hypothesis import strategies as st

from skipway import randomness


def test_mix_gives_splitmix64s_published_numbers():
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in range(5)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    want = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(v) % 2**64 for v in randomness.mix(signed)] == want


@given(st.integers(0, 2**62), st.integers(0, 2**31), st.integers(0, 10_000))
def test_uniform_belongs_to_the_sample_not_to_its_place(index, seed, epoch):
    ids = torch.tensor([5, index, 17])
    together = randomness.uniform(ids, seed=seed, epoch=epoch, stream="crop", num=3)
    alone = randomness.uniform(torch.tensor([index]), seed=seed, epoch=epoch, stream="crop", num=3)
    assert torch.equal(together[1], alone[0])
    assert together.dtype == torch.float64
    assert ((together >= 0) & (together < 1)).all()


def test_uniform_is_uniform_and_streams_are_independent():
    ids = torch.arange(100_000)
    a = randomness.uniform(ids, seed=0, epoch=1, stream="flip", num=2)
    b = randomness.uniform(ids, seed=0, epoch=1, stream="crop")[:, 0]
    c = randomness.uniform(ids, seed=0, epoch=2, stream="flip")[:, 0]
    d = randomness.uniform(ids, seed=1, epoch=1, stream="flip")[:, 0]
    histogram = torch.histc(a[:, 0], 20, 0, 1)
    chi_squared = ((histogram - 5000) ** 2 / 5000).sum()
    assert chi_squared < 43.8  # 99.9% of the distribution with 19 degrees of freedom
    for other in (a[:, 1], b, c, d):
        assert abs(torch.corrcoef(torch.stack([a[:, 0], other]))[0, 1]) < 0.015


def test_order_is_a_permutation_that_changes_with_the_epoch():
    ids = torch.arange(50, 1050)
    one, two = (randomness.order(ids, seed=3, epoch=e) for e in (1, 2))
    assert torch.equal(one.sort().values, ids)
    assert not torch.equal(one, two)
    assert torch.equal(one, randomness.order(ids, seed=3, epoch=1))


def test_seed_network_makes_draws_a_function_of_seed_step_and_rank():
    def draw(**where):
        randomness.seed_network(**where)
        return torch.rand(4)

    same = draw(seed=1, step=2)
    assert torch.equal(same, draw(seed=1, step=2, rank=0))
    for other in ({"seed": 1, "step": 3}, {"seed": 2, "step": 2}, {"seed": 1, "step": 2, "rank": 1}):
        assert not torch.equal(same, draw(**other))
