"""Conversions go on after an interruption and name what fails."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.preparation.conversion import Task, provide, run_tasks


def task_of(path, calls, error=None):
    def run():
        calls.append(path.name)
        if error:
            raise error
        path.write_text("done")

    return Task(path.name, (path,), run)


def test_what_is_there_is_not_done_again(tmp_path):
    calls = []
    paths = [tmp_path / "inner" / name for name in "abc"]
    paths[1].parent.mkdir()
    paths[1].write_text("there")
    assert run_tasks([task_of(path, calls) for path in paths], workers=2) == []
    assert sorted(calls) == ["a", "c"] and paths[1].read_text() == "there"
    assert run_tasks([task_of(path, calls) for path in paths]) == [] and len(calls) == 2


def picture_task(source, output, linked=None):
    """Writes a PNG, and beside it makes `linked` known under another name, as conversions of images do."""

    def run():
        value = int(source.read_text())
        if linked:
            provide(source, linked)
        Image.new("L", (4, 4), value).save(output)

    outputs = (output, linked) if linked else (output,)
    return Task(source.name, outputs, run, (source,))


@pytest.mark.parametrize("links", [True, False])
def test_what_is_older_than_its_source_is_made_anew(tmp_path, links):
    source, output = tmp_path / "source", tmp_path / "a.png"
    source.write_text("7")
    task = picture_task(source, output, tmp_path / "link" if links else None)
    assert run_tasks([task]) == [] and np.asarray(Image.open(output)).max() == 7
    source.write_text("9")
    later = output.stat().st_mtime_ns + 10**9
    os.utime(source, ns=(later, later))
    assert run_tasks([task]) == [] and np.asarray(Image.open(output)).max() == 9
    os.utime(output, ns=(later, later))
    source.write_text("11")
    os.utime(source, ns=(later, later))  # as old: left as it is, a link of the source too
    assert run_tasks([task]) == [] and np.asarray(Image.open(output)).max() == 9


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:45] + bytes(4) + b[49:], lambda b: b""])
def test_outputs_that_cannot_be_read_are_made_anew(tmp_path, damage):
    source, output = tmp_path / "source", tmp_path / "a.png"
    source.write_text("7")
    task = picture_task(source, output)
    assert run_tasks([task]) == []
    content = output.read_bytes()
    output.write_bytes(damage(content))
    assert run_tasks([task]) == [] and output.read_bytes() == content
    output.write_bytes(damage(content))
    source.write_text("no number")
    (failure,) = run_tasks([task])
    assert "no number" in failure.reason and not output.exists() and source.exists()


def test_failures_are_named_and_stop_nothing(tmp_path):
    calls = []
    tasks = [task_of(tmp_path / "a", calls, OSError("disk")), task_of(tmp_path / "b", calls)]
    (failure,) = run_tasks(tasks, workers=1)
    assert (failure.name, failure.reason) == ("a", "OSError: disk") and calls == ["a", "b"]


@pytest.mark.parametrize("links", [True, False])
def test_files_are_linked_or_copied(tmp_path, monkeypatch, links):
    def no_link(*paths):
        raise OSError("another file system")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    (tmp_path / "a").write_text("text")
    provide(tmp_path / "a", tmp_path / "b")
    provide(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "text"
    assert (tmp_path / "a").samefile(tmp_path / "b") == links


def test_a_link_is_followed_to_its_file(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a").write_text("text")
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "a").symlink_to("../raw/a")
    (tmp_path / "out" / "inner").mkdir(parents=True)
    provide(tmp_path / "download" / "a", tmp_path / "out" / "inner" / "a")
    assert (tmp_path / "out" / "inner" / "a").read_text() == "text"
