"use strict";
const settings = JSON.parse(document.getElementById("settings").textContent);
const root = document.documentElement;
root.dataset.scripts = "yes";
const asked = () => {
  try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }
};
const make = (tag, text = "", own = {}) => Object.assign(document.createElement(tag), { textContent: text }, own);

// Files that the page carries, as base64 of gzip.
const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const save = (text, name) => {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  const link = make("a", "", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};
const copy = async (button, source) => {
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Selected: copy it now";
  }
  setTimeout(() => { button.textContent = "Copy command"; }, 3000);
};
document.addEventListener("click", async (event) => {
  const file = event.target.closest(".file"), copied = event.target.closest(".copy");
  if (file) save(await unpack(file.dataset.file), file.dataset.name);
  if (copied) copy(copied, copied.previousElementSibling);
  const all = event.target.closest(".all");
  if (all) {
    let below = all.parentElement;
    while (!below.querySelector("table")) below = below.nextElementSibling;
    all.setAttribute("aria-pressed", String(below.querySelector("table").classList.toggle("every")));
  }
});

// Figures: drawn when they come into view, in the colours of the page, by the library that the page carries.
const library = (async () => {
  document.head.append(make("script", await unpack("plotly")));
})();
const axis = (name) => /^[xy]axis\d*$/.test(name);
const merge = (common, own) => {
  const found = { ...common };
  for (const [key, value] of Object.entries(own)) {
    if (value === null) delete found[key];
    else if (typeof value === "object" && !Array.isArray(value)) found[key] = merge(common[key] ?? {}, value);
    else found[key] = value;
  }
  return found;
};
const layoutOf = (own) => {
  const common = settings.layout, shared = {}, found = {};
  for (const key in common) if (!axis(key)) shared[key] = common[key];
  for (const key in own) if (axis(key)) found[key] = merge(common[key.slice(0, 5)], own[key]);
  return { ...merge(shared, Object.fromEntries(Object.entries(own).filter(([key]) => !axis(key)))), ...found };
};
const look = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const pageColours = () => ({ text: look("--text"), line: look("--line") });
const themed = (layout, colours) => {
  const found = { "font.color": colours.text };
  for (const key in layout) if (axis(key) && layout[key]) found[`${key}.gridcolor`] = colours.line;
  return found;
};
const drawn = new Set();
const draw = (box) => {
  if (drawn.has(box)) return;
  drawn.add(box);
  const spec = JSON.parse(box.nextElementSibling.textContent);
  const layout = layoutOf(spec.layout), colours = pageColours();
  layout.font = { ...layout.font, color: colours.text };
  for (const key in layout) if (axis(key)) layout[key].gridcolor = colours.line;
  for (const trace of spec.data) if (trace.type === "heatmap") trace.textfont = { color: colours.text };
  Plotly.newPlot(box, spec.data, layout, settings.config);
};
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "400px" });
const boxes = [...document.querySelectorAll(".plot")];
library.then(() => boxes.forEach((box) => near.observe(box)));
const paint = (colours, size) => drawn.forEach((box) => {
  const maps = box.data.flatMap((trace, i) => trace.type === "heatmap" ? [i] : []);
  if (maps.length) Plotly.restyle(box, { "textfont.color": colours.text }, maps);
  Plotly.relayout(box, { ...themed(box.layout, colours), ...size });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(pageColours(), {}));
addEventListener("beforeprint", () => {
  if (!window.Plotly) return;
  boxes.filter((box) => !box.closest("details:not([open])")).forEach(draw);
  paint({ text: "#1b1e22", line: "#d5d9de" }, { width: 660 });
});
addEventListener("afterprint", () => paint(pageColours(), { width: null, autosize: true }));

// Parts are folded: whoever is led into one finds it open.
const unfold = (node) => {
  for (let part = node?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
};
const led = () => {
  const id = asked(), node = id && document.getElementById(id);
  if (!node) return;
  unfold(node);
  node.scrollIntoView();
};
addEventListener("hashchange", led);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link) unfold(document.getElementById(decodeURIComponent(link.hash.slice(1))));
});
const every = document.getElementById("open-all");
every.addEventListener("click", () => {
  const open = every.getAttribute("aria-pressed") !== "true";
  document.querySelectorAll("main .part").forEach((part) => { part.open = open; });
  every.setAttribute("aria-pressed", String(open));
  every.textContent = open ? "Fold all parts" : "Open all parts";
});
led();

// Tables: sorted by any column, filtered by words and by chosen values, some a page at a time.
const number = (text) => /^[+-]?[\d.,]+(e[+-]?\d+)?(?![\w])/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN;
const words = new Intl.Collator(undefined, { numeric: true });
const compare = (a, b) => {
  const x = number(a), y = number(b);
  return isNaN(x) || isNaN(y) ? words.compare(a, b) : x - y;
};
class Grid {
  // rows: { cells: [text], node() -> the row's element }
  constructor(table, rows, size) {
    Object.assign(this, { table, rows, size, page: 0, order: rows, tools: table.closest(".box").previousElementSibling });
    this.heads = [...table.tHead.rows[0].cells];
    this.heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => this.sort(head, column)));
    if (this.tools?.classList.contains("tools")) this.listen();
    this.show();
  }
  listen() {
    this.input = this.tools.querySelector("input");
    this.selects = [...this.tools.querySelectorAll("select")].map((select) => {
      const column = this.heads.findIndex((head) => head.textContent.trim() === select.dataset.column);
      for (const value of new Set(this.rows.map((row) => row.cells[column]))) select.append(make("option", value, { value }));
      return { select, column };
    });
    this.output = this.tools.querySelector("output");
    this.tools.addEventListener("input", () => { this.page = 0; this.show(); });
    this.tools.querySelectorAll(".pages button").forEach((button, i) =>
      button.addEventListener("click", () => { this.page += i ? 1 : -1; this.show(); }));
  }
  sort(head, column) {
    const down = head.getAttribute("aria-sort") === "ascending";
    this.heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const none = (row) => row.cells[column] === "\u2013";
    this.order = [...this.rows].sort((a, b) => none(a) - none(b)
      || (down ? -1 : 1) * compare(a.cells[column], b.cells[column]));
    this.page = 0;
    this.show();
  }
  found() {
    const asked = (this.input?.value ?? "").toLowerCase().split(/\s+/);
    const chosen = (this.selects ?? []).filter(({ select }) => select.value);
    return this.order.filter((row) => {
      row.text ??= row.cells.join(" ").toLowerCase();
      return asked.every((word) => row.text.includes(word))
        && chosen.every(({ select, column }) => row.cells[column] === select.value);
    });
  }
  show() {
    const found = this.found(), pages = Math.max(1, Math.ceil(found.length / this.size));
    this.page = Math.max(0, Math.min(this.page, pages - 1));
    const first = this.size === Infinity ? 0 : this.page * this.size;
    this.table.tBodies[0].replaceChildren(...found.slice(first, first + this.size).map((row) => row.node()));
    if (!this.output) return;
    this.output.value = `${found.length} of ${this.rows.length} rows` + (pages > 1 ? `, page ${this.page + 1} of ${pages}` : "");
    const [back, on] = this.tools.querySelectorAll(".pages button");
    if (on) {
      back.parentNode.hidden = pages === 1;
      back.disabled = this.page === 0;
      on.disabled = this.page === pages - 1;
    }
  }
  reveal(id) {
    const row = this.rows.find((one) => one.id === id);
    if (!row) return;
    if (this.input) this.input.value = "";
    this.selects?.forEach(({ select }) => { select.value = ""; });
    this.page = Math.floor(this.order.indexOf(row) / this.size);
    this.show();
    return row;
  }
}
for (const table of document.querySelectorAll("table:not([data-packed]):not(#glance)")) {
  const rows = [...table.tBodies[0].rows].map((node) => ({
    cells: [...node.cells].map((cell) => (cell.querySelector("summary") ?? cell).textContent.trim()),
    node: () => node,
  }));
  new Grid(table, rows, Infinity);
}

// Trials: rows made as they are shown, each opening to its facts and its command.
const trialRow = (all, i, heads) => {
  let row, more;
  const details = () => {
    const cell = make("td", "", { colSpan: heads.length }), held = make("div", "", { className: "held" });
    const list = make("dl"), button = make("button", "Copy command", { type: "button", className: "copy" });
    all.facts.forEach((name, k) => { if (all.more[i][k]) list.append(make("dt", name), make("dd", all.more[i][k])); });
    held.append(list, make("p", "Trains it again:", { className: "note" }), make("pre", all.commands[i]), button);
    cell.append(held);
    const found = make("tr", "", { className: "more" });
    found.append(cell);
    return found;
  };
  const toggle = (open = !more) => {
    if (open && !more) row.after(more = details());
    else if (!open && more) { more.remove(); more = null; }
    row.querySelector("button").setAttribute("aria-expanded", String(open));
  };
  const node = () => {
    more = null;
    if (row) { row.querySelector("button").setAttribute("aria-expanded", "false"); return row; }
    row = make("tr", "", { id: all.ids[i] });
    all.cells[i].forEach((text, k) => {
      const cell = make("td", k ? text : "", { className: heads[k].dataset.kind });
      if (k === 0) {
        const button = make("button", text, { type: "button", className: "opens" });
        button.setAttribute("aria-expanded", "false");
        button.addEventListener("click", () => toggle());
        cell.append(button);
      }
      if (heads[k].textContent.trim() === "Status") row.dataset.status = text;
      row.append(cell);
    });
    return row;
  };
  return { cells: all.cells[i], id: all.ids[i], node, open: () => toggle(true) };
};
let trials;
const loadTrials = () => trials ??= (async () => {
  const table = document.querySelector("table[data-packed]");
  if (!table) return null;
  const all = JSON.parse(await unpack(table.dataset.packed)), heads = [...table.tHead.rows[0].cells];
  return new Grid(table, all.cells.map((_, i) => trialRow(all, i, heads)), 50);
})();
const goToTrial = async () => {
  const id = asked();
  if (!id.startsWith("trial-")) return;
  const row = (await loadTrials())?.reveal(id);
  if (!row) return;
  document.querySelectorAll("tr.target").forEach((other) => other.classList.remove("target"));
  row.open();
  unfold(document.querySelector("table[data-packed]"));
  const node = document.getElementById(id);
  node.classList.add("target");
  node.scrollIntoView({ block: "center" });
  node.querySelector("button").focus({ preventScroll: true });
};
addEventListener("hashchange", goToTrial);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#trial-"]');
  if (link && link.hash === location.hash) goToTrial();
});
const packed = document.querySelector("table[data-packed]");
if (packed) {
  new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); loadTrials(); }
  }, { rootMargin: "600px" }).observe(packed);
}
goToTrial();

// The contents stay open beside the text, and fold away on a narrow screen.
const contents = document.querySelector(".contents"), narrow = matchMedia("(max-width: 1099px)");
const fold = () => { contents.open = !narrow.matches; };
narrow.addEventListener("change", fold);
contents.addEventListener("click", (event) => { if (narrow.matches && event.target.closest("a")) contents.open = false; });
fold();
library.then(() => { root.dataset.ready = "yes"; });
