"""The arithmetic of ``hialign plan``, by hand and against what small models really take."""

from __future__ import annotations

import pytest

from hialign.training.cost import cache_pays, feature_bytes, reference_bytes


def test_the_features_of_llavas_first_stage_are_658_gigabytes() -> None:
    assert feature_bytes(558_128, 576, 1024) == 658_394_578_944


def test_a_reference_cache_without_divergences_is_a_float_a_token() -> None:
    assert reference_bytes(2 * 5733, 100, 0) == 4 * 100 * 2 * 5733
    assert reference_bytes(10, 7, 4096) == 10 * 7 * (2 * 4096 + 4)


def test_caching_takes_as_many_times_as_long_as_gpus_share_training_s_passes() -> None:
    """10 s an epoch on 4 GPUs: 6 epochs take 60 s, and caching 40 s in one process; of 4 epochs nothing is left."""
    assert cache_pays(10**6, 10.0, epochs=6, gpus=4)[1].startswith("saves 20 s")
    pays, why = cache_pays(10**6, 10.0, epochs=4, gpus=4)
    assert not pays
    assert why == "saves nothing: its forward passes take 40 s in one process, those of 4 epochs on 4 GPUs 40 s"


def test_no_cache_pays_in_a_single_epoch() -> None:
    pays, why = cache_pays(1, 1e6, epochs=1)
    assert not pays
    assert "epochs=1 no record is read twice" in why


def test_a_cache_saves_one_epoch_less_than_there_are() -> None:
    # 3 epochs save 2 x 10 s; to write once and read three times takes 4 s at 1 GB/s, or 40 s at a tenth of that.
    assert cache_pays(10**9, 10.0, epochs=3) == (
        True,
        "saves 20 s of forward passes in 3 epochs, for 4 s of disk (1.0 GB)",
    )
    assert not cache_pays(10**9, 10.0, epochs=3, disk_rate=1e8)[0]


def test_a_cache_larger_than_the_disk_does_not_pay() -> None:
    pays, why = cache_pays(658_394_578_944, 1e9, epochs=10, free_bytes=10**11)
    assert not pays
    assert "658.4 GB" in why


@pytest.mark.parametrize("wrong", [{"num_bytes": -1}, {"forward_seconds": float("nan")}, {"epochs": -1}])
def test_numbers_that_are_none_are_refused_by_name(wrong: dict[str, float]) -> None:
    given = {"num_bytes": 1, "forward_seconds": 1.0, "epochs": 2.0} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cache_pays(**given)  # type: ignore[arg-type]


def test_a_disk_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="disk_rate=0"):
        cache_pays(1, 1.0, 2, disk_rate=0)
