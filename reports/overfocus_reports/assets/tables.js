// Tables sort by their heads and can be kept as CSV.
function buildTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = make("button", { type: "button", onclick: () => sortBy(table, column) }, head.textContent);
      head.replaceChildren(button);
    });
    registerFigure(table.id, { csv: () => tableRows(table) });
  }
}

// The rows of what is picked stand out in the tables.
function markTables() {
  whenPicked(["model", "variant", "layer"], () => {
    const { corruption, severity } = pickedVariant();
    for (const row of document.querySelectorAll("tr[data-variant]")) row.classList.toggle("current", row.dataset.variant === `${corruption} ${severity}`);
    for (const row of document.querySelectorAll("tr[data-layer]")) row.classList.toggle("current", Number(row.dataset.layer) === layerOf().number);
  });
}

const cellOf = (row, column) => row.cells[column]?.dataset.value ?? row.cells[column]?.textContent.trim() ?? "";

// First click: rising for words, falling for numbers; then the other way round. Empty cells stay last.
function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.some((row) => cellOf(row, column) !== "") && rows.every((row) => cellOf(row, column) === "" || known(Number(cellOf(row, column))));
  const before = heads[column].getAttribute("aria-sort");
  const rising = before ? before === "descending" : !numeric;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
  const compare = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  rows.sort((first, second) => {
    const [a, b] = [cellOf(first, column), cellOf(second, column)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return rising ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows);
}

function tableRows(table) {
  const text = (cell) => cell.dataset.value ?? cell.textContent.trim().replace(/\s+/g, " ");
  return [...table.rows].map((row) => [...row.cells].map(text));
}

// Text that a spreadsheet would take for a formula gets an apostrophe in front.
function csvText(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) && !known(Number(value)) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${rows.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}
