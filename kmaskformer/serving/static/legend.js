// The list of the classes that were found, each with a box to switch it off.

export class Legend {
  /** `view` draws; `list` is the element that holds the rows. */
  constructor(view, list) {
    this.view = view;
    this.list = list;
  }

  show(answer, model) {
    const classes = new Map();
    for (const { category_id: id, area } of answer.segments) {
      const found = classes.get(id) ?? { id, count: 0, area: 0 };
      classes.set(id, { id, count: found.count + 1, area: found.area + area });
    }
    const sorted = [...classes.values()].sort((a, b) => b.area - a.area);
    this.list.replaceChildren(...sorted.map((row) => this.row(row, model.classes[row.id], answer)));
  }

  setAll(isOn) {
    for (const box of this.list.querySelectorAll("input")) {
      box.checked = isOn;
      this.remember(box);
    }
    this.view.redraw();
  }

  row({ id, count, area }, { name, color, is_thing: isThing }, { width, height }) {
    const item = make("li"), label = make("label"), box = make("input"), swatch = make("span", "swatch");
    Object.assign(box, { type: "checkbox", checked: !this.view.hidden.has(id), value: id });
    swatch.style.backgroundColor = `rgb(${color.join(" ")})`;
    const part = `${((100 * area) / (width * height)).toFixed(1)} %`;
    label.append(box, swatch, make("span", "name", name));
    label.append(make("span", "figures", isThing ? `${count} × · ${part}` : part));
    box.addEventListener("change", () => {
      this.remember(box);
      this.view.redraw();
    });
    for (const type of ["pointerenter", "focusin"]) label.addEventListener(type, () => this.view.lightUp(id));
    for (const type of ["pointerleave", "focusout"]) label.addEventListener(type, () => this.view.lightUp(-1));
    item.append(label);
    return item;
  }

  remember(box) {
    const id = Number(box.value);
    if (box.checked) this.view.hidden.delete(id);
    else this.view.hidden.add(id);
  }
}

function make(tag, className = "", text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}
