"""What the README shows works: its commands name files that exist, its configuration loads, its Python runs."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
from PIL import Image

from kmaskformer.checkpoints.releases import releases
from kmaskformer.config import load_config


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(readme, language):
    return re.findall(rf"```{language}\n(.*?)```", readme, flags=re.DOTALL)


def test_the_two_commands_stand_first(readme):
    first = blocks(readme, "bash")[0]
    assert [line.split("  ")[0].strip() for line in first.splitlines()] == [
        "bash scripts/quickstart.sh",
        "bash scripts/test.sh",
    ]


def test_named_scripts_and_configs_exist(readme, repository):
    names = set(re.findall(r"(?:scripts|configs|kmaskformer)/[\w/.-]+\.(?:py|sh|yaml)", readme))
    assert len(names) >= 6
    assert [name for name in names if not (repository / name).is_file()] == []


def test_the_configuration_of_own_data_loads(readme, tmp_path):
    for index, text in enumerate(blocks(readme, "yaml")):
        path = tmp_path / f"{index}.yaml"
        path.write_text(text)
        config = load_config(path)
        assert config.model.num_classes == len(config.data.class_names)


def test_the_python_runs(readme, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    for text in blocks(readme, "python"):
        exec(compile(text, "README.md", "exec"), {})
    printed = capsys.readouterr().out.split()
    assert all(0 <= float(score) <= 1 for score in printed[-2:])


@pytest.mark.slow
def test_the_notebook_lines_run(readme, repository, monkeypatch, tmp_path):
    """From two folders to a picture, with smaller crops and fewer steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(repository / "configs")
    pixels = np.random.default_rng(0)
    for folder, shape, high in (("images", (96, 128, 3), 256), ("masks", (96, 128), 3)):
        (tmp_path / folder).mkdir()
        for index in range(5):
            Image.fromarray(pixels.integers(0, high, shape, np.uint8)).save(tmp_path / folder / f"{index}.png")
    (text,) = (text for text in blocks(readme, "py") if "from_folders" in text)
    for given, small in (
        ("(256, 256)", "(64, 64)"),
        ("batch_size=8", "batch_size=2"),
        ("=100, epochs=9", "=1, epochs=2"),
    ):
        assert given in text
        text = text.replace(given, small)
    exec(compile(text, "README.md", "exec"), {})
    assert Image.open("overlay.png").size[1] >= 96


def test_the_other_python_is_python(readme):
    assert len(blocks(readme, "py")) == 2
    for text in blocks(readme, "py"):
        ast.parse(text)


def test_the_table_of_published_scores_is_that_of_the_releases(readme):
    rows = readme.split("| COCO PQ | ADE20K PQ |\n")[1].split("\n\n")[0].splitlines()[1:]
    table = {name.strip(): [cell.strip() for cell in cells] for _, name, *cells, _ in (row.split("|") for row in rows)}
    columns = ["ade20k150", "coco_stuff171", "ade20k_full847", "cityscapes19", "mapillary65"]
    columns += ["coco_panoptic133", "ade20k_panoptic150"]
    kinds = {"per_pixel": "PerPixelBaseline ", "per_pixel_plus": "PerPixelBaseline+ ", "maskformer": ""}
    expected = {name: [""] * len(columns) for name in table}
    for release in releases():
        backbone = release.backbone.replace("resnet", "R").replace("swin_", "Swin-")
        backbone = backbone if backbone.startswith("R") else f"Swin-{backbone[5].upper()}"
        column = columns.index(release.name.removeprefix(f"{release.model}_{release.backbone}_"))
        scores = [score for score in (release.mIoU, release.mIoU_ms_flip, release.PQ) if score is not None]
        expected[kinds[release.model] + backbone][column] = " / ".join(map(str, scores))
    assert table == expected


def test_it_is_short_and_its_files_exist(readme, repository):
    assert len(readme.splitlines()) < 250
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", readme)
    assert len(links) >= 6
    assert [link for link in links if not leads_somewhere(link, repository)] == []


def leads_somewhere(link, repository):
    """Whether there is such a file, with such a heading."""
    name, _, anchor = link.partition("#")
    path = repository / (name or "README.md")
    if not anchor:
        return path.exists()
    headings = re.findall(r"^#+ (.+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return anchor in [re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
