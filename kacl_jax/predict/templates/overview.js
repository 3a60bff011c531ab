"use strict";
const { findings, rows, visible } = JSON.parse(document.getElementById("rows").textContent);
const byId = (id) => document.getElementById(id);
const table = byId("images"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
const hasPages = body.querySelector("a") !== null;
const remark = (row) => row[2] || (row[3] ? "not like the training images" : "");
const valueOf = [(row) => row[0], ...findings.map((_, c) => (row) => row[4][c])];
const filters = [
  ["all images", () => true],
  ...findings.map((name, c) => [`positive: ${name.replaceAll("_", " ")}`, (row) => row[5].includes(c)]),
  ["no positive finding", (row) => !row[2] && !row[5].length],
  ["not like the training images", (row) => row[3]],
  ["without a prediction", (row) => row[2]],
];
let shown = rows, first = 0, column = -1, direction = 1;

function cell(kind, text, style) {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = style;
  return made;
}

function line(row) {
  const tr = document.createElement("tr"), head = cell("th", "", "");
  head.scope = "row";
  if (hasPages && row[1]) {
    const link = cell("a", row[0], "");
    link.href = `pages/${row[1].padStart(4, "0")}.html#${encodeURIComponent(row[0])}`;
    head.append(link);
  } else head.textContent = row[0];
  if (remark(row)) head.append(cell("span", remark(row), "remark"));
  tr.append(head);
  row[4].forEach((p, c) => tr.append(cell("td", p === null ? "–" : p.toFixed(3), row[5].includes(c) ? "positive" : "")));
  return tr;
}

function draw() {
  body.replaceChildren(...shown.slice(first, first + visible).map(line));
  const last = Math.min(first + visible, shown.length);
  byId("place").textContent = shown.length ? `${first + 1}–${last} of ${shown.length}` : "no image";
  byId("before").disabled = first === 0;
  byId("after").disabled = last === shown.length;
  heads.forEach((head, c) => head.setAttribute("aria-sort", c !== column ? "none" : direction > 0 ? "ascending" : "descending"));
}

function choose() {
  const keeps = filters[byId("filter").value][1], part = byId("search").value.toLowerCase();
  shown = rows.filter((row) => keeps(row) && row[0].toLowerCase().includes(part));
  if (column >= 0) {
    const value = valueOf[column], missing = (v) => v === null;
    shown.sort((a, b) => {
      const x = value(a), y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return direction * ((x > y) - (x < y));
    });
  }
  first = 0;
  draw();
}

heads.forEach((head, c) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    direction = c === column ? -direction : c === 0 ? 1 : -1;
    column = c;
    choose();
  };
});
filters.forEach(([name], place) => byId("filter").add(new Option(name, place)));
byId("filter").onchange = byId("search").oninput = choose;
byId("before").onclick = () => { first = Math.max(0, first - visible); draw(); };
byId("after").onclick = () => { first += visible; draw(); };
byId("cut")?.remove();
byId("controls").hidden = false;
draw();
