"""Numbers of a report, worked by hand."""

from gptjax.pages import numbers


def test_a_value_has_the_digits_its_interval_leaves():
    assert numbers.uncertain(0.34784, [0.3312, 0.3625]) == "0.348"
    assert numbers.bounds([0.3312, 0.3626]) == "[0.331, 0.363]"
    assert numbers.beside(2085.43, [1871.2, 2310.9]) == "2,085 [1,871, 2,311]"
    assert numbers.uncertain(1.81723, [1.8169, 1.8174]) == "1.81723"


def test_the_80_percent_interval_has_the_digits_of_the_95_percent_one():
    wide = [1.74, 1.89]
    assert numbers.bounds([1.7809, 1.8535], 1.8172, wide) == "[1.78, 1.85]"


def test_a_value_without_an_interval_has_four_digits_and_none_is_a_dash():
    assert [numbers.plain(x) for x in (0.34784, 482.013, 2e13, 1.5e-5, 0.0, 97, None)] == [
        "0.3478", "482.0", "2.000e13", "1.500e-5", "0.000", "97", "–"]  # fmt: skip
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
