"""The report: one file, the same for the same run, that loads nothing, hides nothing and executes nothing."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from hansa.tracking import RunFolder, write_report

EVIL = '<script>alert("x")</script> & $\\frac{1}{2}$ @0@ 医院'
VOID = {"meta", "link"}


class Page(HTMLParser):
    """Collects elements and text, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def sample(tmp_path, clients: int = 4, rounds: int = 5, task: str = "classification", name: str = "Hospitals", classes: int = 2):
    rng = np.random.default_rng(clients)
    names = [name if k == 0 else f"client-{k:04d}" for k in range(clients)]
    folder = RunFolder.create(
        tmp_path, "r", f"name = '{name}'\n[learner]\nname = 'logistic_regression'\n[algorithm]\nname = 'fedavg'\n"
    )
    for round in range(1, rounds + 1):
        lost = [{"clients": names[:1], "kind": "WorkerLost", "message": name}]
        record = {"round": round, "train/loss": 1 / round, "test/loss": 1.1 / round, "test/auc": 0.775 if round > 1 else math.nan}
        record |= {"clients": clients, "bytes_up": 1500, "bytes_down": 2500, "failures": lost if round == 2 else []}
        folder.append_metrics(record)
    rows = rng.integers(5, 500, clients).tolist()
    told = {}
    for client, n in zip(names, rows, strict=True):
        labels = {str(c): int(m) for c, m in enumerate(rng.multinomial(n, [1 / classes] * classes))}
        answer = {"labels": labels} if task == "classification" else {"target": {"mean": n / 7, "std": 2.0}}
        told[client] = {"rows": {"train": n, "test": 3}, **answer}
    folder.write_json(
        "description.json", {"task": task, "features": ["a"], "classes": list(range(classes)), "rows": sum(rows), "clients": told}
    )
    metrics = {client: {"auc": None if k == 1 else float(rng.random()), "loss": 0.4, "rows": 3} for k, client in enumerate(names)}
    folder.write_json("clients.json", {"split": "test", "metrics": metrics, "overall": {"auc": 0.8, "loss": 0.4}})
    folder.write_json(
        "sharing.json", {"left_the_clients": [name], "stayed": ["rows"], "guarantees": [{"transform": "clip", "guarantee": "none"}]}
    )
    values = {"auc": {client: [0.8, 0.01] for client in [*names, "overall"]}}
    ways = [{"name": "alone", "values": values}, {"name": name, "values": {"auc": {"overall": [0.9, None]}}}]
    folder.write_json("comparison.json", {"metrics": ["auc"], "clients": names, "rows": ways, "sentence": name})
    folder.set_status("failed", error=name, seconds=3.0, rounds=rounds)
    folder.close()
    return folder


VARIETIES = [
    {}, {"clients": 1, "rounds": 1}, {"clients": 30, "classes": 12}, {"clients": 31}, {"clients": 1500, "classes": 62},
    {"task": "regression"}, {"task": "regression", "clients": 40}, {"rounds": 1200}, {"name": EVIL},
]  # fmt: skip


@pytest.mark.parametrize("variety", VARIETIES, ids=str)
def test_it_is_one_small_well_formed_accessible_page_that_loads_nothing(tmp_path, variety):
    path = write_report(sample(tmp_path, **variety))
    text = path.read_text()
    page = Page(text)
    assert len(text.encode()) < 400_000 and path.stat().st_mode & 0o777 == 0o600
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert not any(page.all(tag) for tag in ("script", "iframe", "object", "img", "base", "form"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    for _, attributes in page.elements:
        target = attributes.get("href") or attributes.get("src") or attributes.get("xlink:href") or "#"
        assert target.startswith(("#", "data:")) and not any(name.startswith("on") for name in attributes)
    assert any(meta.get("http-equiv") == "Content-Security-Policy" for meta in page.all("meta"))
    assert all(svg.get("aria-label") and svg["role"] == "img" for svg in page.all("svg") if "aria-hidden" not in svg)
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)
    assert "#0a0b" not in text  # every colour is the page's own


def test_text_of_the_run_is_shown_as_it_is(tmp_path):
    folder = sample(tmp_path, name=EVIL)
    page = Page(write_report(folder).read_text())
    assert page.text.count(EVIL) >= 7  # title, heading, error, comparison, table of clients, sharing, failures, job
    assert "<script>" not in folder.path.joinpath("report.html").read_text()


def test_the_same_folder_gives_the_same_bytes_whatever_the_user_s_style(tmp_path):
    folder = sample(tmp_path)
    first = write_report(folder).read_bytes()
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert write_report(RunFolder.open(folder.path)).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_numbers_are_those_of_the_run(tmp_path):
    page = Page(write_report(sample(tmp_path)).read_text())
    shown = "".join(page.text.split())
    for expected in ("AUC0.800", "Rounds5in3s", "Moved20kB", "0.900", "test0.775", "1failurein1of5rounds"):
        assert expected in shown
    label = next(svg["aria-label"] for svg in page.all("svg") if "AUC by round" in (svg.get("aria-label") or ""))
    assert "test 0.775" in label


def test_tick_labels_keep_their_digits(tmp_path):
    folder = RunFolder.create(tmp_path, "r", "name = 'r'")
    for round, value in ((1, 0.7745), (2, 0.7765)):
        folder.append_metrics({"round": round, "test/auc": value})
    folder.close()
    ticks = re.findall(r">(0\.77\d*)</text>", write_report(folder).read_text())
    assert len({float(tick) for tick in ticks}) == len(ticks) > 2


def test_what_the_folder_does_not_tell_is_left_out(tmp_path):
    folder = RunFolder.create(tmp_path, "bare", "seed = 1")
    folder.close()
    page = Page(write_report(folder).read_text())
    assert "interrupted" in page.text and not [svg for svg in page.all("svg") if "aria-hidden" not in svg]


def test_a_sample_of_the_clients_is_called_one(tmp_path):
    folder = sample(tmp_path, clients=40)
    told = folder.read_json("description.json")
    whole = Page(write_report(folder).read_text()).text
    assert "sample" not in whole and "stayed at 40 clients" in whole
    folder.write_json("description.json", {**told, "population": 20_000})
    text = Page(write_report(folder).read_text()).text
    assert (
        "Here is a sample of 40 of 20,000 clients" in text and "Sizes of the clients, of a sample of 40 of 20,000 clients" in text
    )
    assert "stayed at 20,000 clients" in text
