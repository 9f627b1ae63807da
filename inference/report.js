"use strict";
const table = document.getElementById("table");
const body = table.tBodies[0];
const headers = [...table.tHead.rows[0].cells];
const rows = [...body.rows];
const filterName = document.getElementById("filter-name");
const filterResult = document.getElementById("filter-result");
const filterLow = document.getElementById("filter-low");

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}

headers.forEach((header, column) => {
  header.querySelector("button").addEventListener("click", () => {
    const numeric = header.classList.contains("number");
    // The first click shows high numbers first, and text in alphabetical order.
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    headers.forEach((other) => other.setAttribute("aria-sort", other === header ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    body.append(...rows);
  });
});

function filter() {
  const text = filterName.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden =
      !row.cells[0].textContent.toLowerCase().includes(text) ||
      (filterResult.value !== "" && row.dataset.result !== filterResult.value) ||
      (filterLow.checked && row.dataset.low === "0");
    document.querySelector(row.querySelector("a").hash).hidden = row.hidden;
    shown += row.hidden ? 0 : 1;
  }
  const count = shown === rows.length ? "" : `${shown} of `;
  document.getElementById("shown").textContent = `${count}${rows.length} video${rows.length === 1 ? "" : "s"}`;
}

for (const input of [filterName, filterResult, filterLow]) input.addEventListener("input", filter);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

// A link to a video opens its section.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", openTarget);
body.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link) document.querySelector(link.hash).open = true;
});
openTarget();

// Print all sections.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
