"""The kv part of the demo: what it compares exists, and a short run says what it should."""

import dataclasses

import pytest

from thrifty import catalogue
from thrifty.kv import demo
from thrifty.progress import silent


def test_every_entry_of_the_demo_can_be_made() -> None:
    for name, chosen in demo.ENTRIES:
        catalogue.find("kv", name, "codecs")(**chosen)


@pytest.mark.slow
def test_the_demo_chats_compares_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(
        demo.PROTOCOL, windows=1, window=160, passkey_tokens=(), speed_tokens=1, contexts=(512,)
    )
    monkeypatch.setattr(demo, "PROTOCOL", short)
    said: list[str] = []
    report = demo.run("thrifty demo", silent, said.append)
    assert len(report.rows) == 1 + len(demo.ENTRIES)
    assert all("blue" in answer for answer in report.exchanges[0].answers.values())
    assert "sky" in " ".join(said)
    assert demo.QUESTION in report.page()
