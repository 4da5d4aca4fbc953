"""Numbers of a report, worked by hand."""

from gptjax.pages import numbers


def test_a_value_has_the_digits_its_interval_leaves():
    assert numbers.uncertain(0.34784, [0.3312, 0.3625]) == "0.348"
    assert numbers.bounds([0.3312, 0.3626]) == "[0.331, 0.363]"
    assert numbers.beside(2085.43, [1871.2, 2310.9]) == "2,085 [1,871, 2,311]"
    assert numbers.uncertain(1.81723, [1.8169, 1.8174]) == "1.81723"


def test_what_is_less_than_the_last_digit_of_its_interval_is_not_nothing():
    assert numbers.beside(0.031, [0.0002, 4.1]) == "0.03 [0.0002, 4.1]"


def test_the_80_percent_interval_has_the_digits_of_the_95_percent_one():
    wide = [1.74, 1.89]
    assert numbers.bounds([1.7809, 1.8535], 1.8172, wide) == "[1.78, 1.85]"


def test_a_value_without_an_interval_has_four_digits_and_none_is_a_dash():
    assert [numbers.plain(x) for x in (0.34784, 482.013, 2e13, 1.5e-5, 0.0, 97, None)] == [
        "0.3478", "482.0", "2.000e13", "1.500e-5", "0", "97", "–"]  # fmt: skip
    assert numbers.beside(0.34784, None) == numbers.beside(0.34784, [None, 0.5]) == "0.3478"
    assert numbers.bounds(None) == numbers.count(None) == numbers.loss(None) == "–"


def test_a_scale_over_magnitudes_is_written_with_a_power_of_ten_in_value_and_bounds_alike():
    wide = [1.2e5, 4.1e6]
    assert numbers.beside(7.38e5, wide) == "7.4e5 [1.2e5, 4.1e6]"


def test_counts_round_up_into_the_next_suffix():
    assert [numbers.count(x) for x in (7, 999, 10_240, 999_600, 72_253_000_000, 1.329e12)] == [
        "7.00", "999", "10.2k", "1.00M", "72.3B", "1.33T"]  # fmt: skip


def test_settings_have_no_more_digits_than_they_were_given():
    assert [numbers.setting(x) for x in (1e-3, 3e-5, 100, True, False, "wsd", None)] == [
        "0.001", "3e-5", "100", "yes", "no", "wsd", "–"]  # fmt: skip


def test_a_constant_is_printed_alike_wherever_it_stands():
    """E was 1.38 in one table, 1.377 in another, and 0.0 or 3.328e-24 where a fit left it at zero."""
    wide = [0.8067, 1.699]
    assert numbers.constant("E", 1.3767, wide) == numbers.constant("E", 1.3767) == "1.377"
    assert numbers.constant_beside("E", 1.3767, wide) == "1.377 [0.807, 1.699]"
    assert {numbers.constant("E", value, wide) for value in (0.0, 3.328e-24)} == {"0"}
    assert numbers.constant_bounds("E", [3.328e-24, 1.2]) == "[0, 1.200]"
    assert numbers.plain(0.0) == numbers.plain(3.328e-24) == numbers.uncertain(3.328e-24, [0.0, 1.0]) == "0"
    assert numbers.constant("joint_alpha_N", 0.17136) == "0.171" and numbers.constant("N_c", 6.39e5) == "6.390e5"
    assert numbers.constant_beside("A", 696.95, [2.984, 2.264e61]) == "700 [3, 2.3e61]"


def test_one_of_a_thing_is_not_several():
    assert [numbers.number_of(n, "replicate") for n in (1, 2, 1000)] == [
        "1 replicate",
        "2 replicates",
        "1,000 replicates",
    ]
