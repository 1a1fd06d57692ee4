"""An HTML page and a contact sheet about a dataset, for people."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kmaskformer import visualize
from kmaskformer.data.inspection import Finding, SplitFacts
from kmaskformer.data.truth import true_result

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #202124; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .8rem; text-align: right; }
th { border-bottom: 2px solid #ccc; } td { border-bottom: 1px solid #eee; } .name { text-align: left; }
.error { color: #b3261e; } .warning { color: #8a5a00; } .good { color: #1e6b34; } img { max-width: 100%; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; vertical-align: -.1em; }
.bar { display: inline-block; height: .8em; background: #7aa7e0; vertical-align: middle; }
"""


def draw_contact_sheet(reader: Any, split: SplitFacts, count: int = 8) -> Image.Image:
    """Images with their truth: samples spread evenly over those that can be read.

    Raises:
        ValueError: If none can be read.
    """
    picked = np.unique(np.linspace(0, len(split.readable) - 1, min(count, len(split.readable))).astype(int))
    task = "panoptic" if reader.info.thing_ids else "semantic"
    rows = []
    for index in picked if split.readable else ():
        sample = reader[split.readable[index].index]
        rows.append((sample["image"], true_result(sample, reader.info, task)))
    return visualize.contact_sheet(rows, reader.info, titles=("image", "labels"))


def write_report(
    path: str | Path, splits: Sequence[SplitFacts], findings: Sequence[Finding], sheets: dict[str, Image.Image]
) -> None:
    """Writes one self-contained HTML file.

    Args:
        path: The file.
        splits: The splits, as `inspection.read_facts` found them.
        findings: What `inspection.find_problems` found.
        sheets: Contact sheets by the name of the split.
    """
    title = html.escape(f"Dataset {splits[0].info.name}")
    parts = [f"<h1>{title}</h1>", *_findings(findings)]
    for split in splits:
        parts += [f"<h2>{html.escape(split.name)}</h2>", *_summary(split), *_classes(split)]
        if split.name in sheets:
            parts.append(_picture(sheets[split.name]))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    Path(path).write_text(head + "\n".join(parts) + "</html>\n", encoding="utf-8")


def _findings(findings: Sequence[Finding]) -> Iterable[str]:
    errors = sum(finding.is_error for finding in findings)
    if errors:
        yield f'<p class="error"><b>Training cannot start: {errors} error(s).</b></p>'
    else:
        yield '<p class="good"><b>Training can start.</b></p>'
    for finding in findings:
        yield f'<p class="{"error" if finding.is_error else "warning"}">{html.escape(str(finding))}</p>'


def _summary(split: SplitFacts) -> Iterable[str]:
    segments, sizes = split.num_segments, [sample.size for sample in split.readable]
    rows = [("images", f"{len(split.readable)}"), ("unreadable", f"{len(split.samples) - len(split.readable)}")]
    if sizes:
        heights, widths = (sorted(sides) for sides in zip(*sizes, strict=True))
        rows.append(("height: least, median, most", f"{heights[0]} .. {heights[len(heights) // 2]} .. {heights[-1]}"))
        rows.append(("width: least, median, most", f"{widths[0]} .. {widths[len(widths) // 2]} .. {widths[-1]}"))
        rows.append(
            ("segments an image: least, median, most", f"{min(segments)} .. {np.median(segments):g} .. {max(segments)}")
        )
        pixels = sum(height * width for height, width in sizes)
        void = sum(sample.void_pixels for sample in split.readable)
        rows.append(("unlabelled pixels", f"{void / pixels:.1%}"))
    cells = "".join(f'<tr><td class="name">{name}</td><td>{value}</td></tr>' for name, value in rows)
    yield f"<table>{cells}</table>"


def _classes(split: SplitFacts) -> Iterable[str]:
    total = max(int(split.class_pixels.sum()), 1)
    yield (
        '<table><tr><th class="name">class</th><th>id</th><th>images</th><th>segments</th><th>median area</th>'
        '<th>pixels</th><th class="name"></th></tr>'
    )
    largest = max(split.class_pixels.max() / total, 1e-9)
    for index, name in enumerate(split.info.class_names):
        share = split.class_pixels[index] / total
        color = "#{:02x}{:02x}{:02x}".format(*split.info.colors[index])
        kind = " (thing)" if index in split.info.thing_ids else ""
        yield (
            f'<tr><td class="name"><span class="swatch" style="background:{color}"></span>'
            f"{html.escape(name)}{kind}</td><td>{split.info.dataset_ids[index]}</td>"
            f"<td>{split.class_images[index]}</td><td>{split.class_segments[index]}</td>"
            f"<td>{split.class_areas[index]:.0f}</td><td>{share:.2%}</td>"
            f'<td class="name"><span class="bar" style="width:{200 * share / largest:.0f}px"></span></td></tr>'
        )
    yield "</table>"


def _picture(sheet: Image.Image) -> str:
    buffer = io.BytesIO()
    sheet.convert("RGB").save(buffer, "JPEG", quality=88)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="images with their labels" src="data:image/jpeg;base64,{content}">'
