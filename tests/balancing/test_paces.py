"""What is expected of workers, against times worked out by hand."""

from bcgc_jax.balancing.ledger import Paces


def test_a_worker_takes_as_long_as_last_or_longer_if_it_does_now():
    paces = Paces(4)
    for worker, end in ((0, 4.0), (1, 8.0)):
        paces.began(worker, 4, 0.0)
        paces.ended(worker, end)
    paces.began(1, 4, 8.0)
    paces.began(2, 4, 0.0)
    # The fourth has the mean of those known.
    assert paces.seconds(10.0).tolist() == [1.0, 2.0, 2.5, 1.5]
    assert paces.seconds(18.0).tolist() == [1.0, 2.5, 4.5, 1.5]
    paces.ended(1, 9.0)
    assert paces.seconds(18.0).tolist() == [1.0, 0.25, 4.5, 0.625]


def test_workers_are_alike_before_anything_is_known():
    paces = Paces(2)
    assert paces.seconds(3.0).tolist() == [1.0, 1.0]
    paces.began(0, 4, 3.0)
    paces.ended(0, 3.0)  # in no time by this clock
    assert paces.seconds(5.0).tolist() == [1.0, 1.0]
