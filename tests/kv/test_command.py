"""`thrifty kv`: a setting goes to the codec or the method that has it; tests/test_cli.py runs the whole command."""

import pytest

from thrifty.errors import SettingError
from thrifty.kv import command


def test_a_setting_goes_to_the_one_that_has_it() -> None:
    codec, method = command._kv_choices("hack", "uniform", ("k_bits=4", "skip_layers=0,1"))
    assert codec.k_bits == 4
    assert method.skip_layers == (0, 1)


def test_a_setting_that_neither_has_lists_those_of_both() -> None:
    with pytest.raises(SettingError, match=r"k_bits.*Uniform has skip_layers"):
        command._kv_choices("hack", "uniform", ("bits=4",))


def test_another_codec_is_read_with_its_settings() -> None:
    name, codec, _ = command._also("kivi:group=64,residual=64", "uniform")
    assert (name, codec.group, codec.residual) == ("kivi", 64, 64)


def test_a_preset_stands_wherever_a_codec_does() -> None:
    codec, _ = command._kv_choices("balanced", "uniform", ("sinks=8",))
    assert (codec.k_bits, codec.v_bits, codec.rotation, codec.sinks) == (4, 2, "all", 8)
    name, other, _ = command._also("smallest:sinks=0", "uniform")
    assert (name, other.k_bits, other.sinks) == ("smallest", 2, 0)
