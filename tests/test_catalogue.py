"""The catalogue: the folder is the list."""

import pytest

from thrifty import catalogue
from thrifty.errors import SettingError


def test_every_method_is_found_by_the_name_of_its_file():
    for system in catalogue.SYSTEMS:
        for kind in catalogue.KINDS:
            for name in catalogue.names(system, kind):
                assert catalogue.find(system, name, kind).__name__ == catalogue.class_name(name)
                assert catalogue.about(system, kind, name)


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(SettingError, match=r"kv has no codec hak \(did you mean hack\?\); it has .*hack, kivi, plain"):
        catalogue.find("kv", "hak", "codecs")


def test_a_file_name_becomes_a_class_name():
    assert catalogue.class_name("snap_kv") == "SnapKv"


def test_a_thing_tells_the_name_it_was_found_by():
    assert catalogue.name_of(catalogue.find("kv", "hack", "codecs")()) == "hack"
